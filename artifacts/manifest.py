"""What made an output: written last, so that its existence means the output is complete.

Schema 1. Fields are only ever added. `digest` covers the files under `out/` and nothing else, so equal digests
mean equal bytes; paths, times and durations stay outside of it.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from artifacts.fingerprint import digest

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "safetensors", "tokenizers")


class FileRecord(BaseModel):
    """A file's size in bytes and SHA-256."""

    model_config = ConfigDict(frozen=True)
    size: int
    sha256: str


class Manifest(BaseModel):
    """One stage's result."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = 1
    uses: str
    key: str
    kind: str
    digest: str
    files: dict[str, FileRecord]
    payload: dict[str, Any]
    """What the key was made of: fields, seed, inputs, content."""
    fields: dict[str, Any]
    """Every field of the stage, defaults included."""
    metrics: dict[str, float]
    seconds: float
    created: str
    source_digest: str
    """Of the stage's code and all of ours that it uses; a hit whose code differs is announced."""
    versions: dict[str, str]
    machine: str = ""
    """What it was made on, in words; "" where that was not written down."""
    remarks: list[str] = []
    """What keeps these bytes from being those of an undisturbed run, if anything does."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        return cls.model_validate_json((folder / "manifest.json").read_text())


def digest_of(files: dict[str, FileRecord]) -> str:
    """The digest of an output: over names and contents of its files."""
    return digest({name: record.sha256 for name, record in files.items()})


def library_versions() -> dict[str, str]:
    """Versions of what computes; recorded and shown as drift, not part of a key."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
