"""Adopt: an adapter that was trained elsewhere, as the output of a stage, so that one's own SFT can be branched from.

Its bytes are its identity. It is read into the base tensor by tensor, so that nothing is missing, left over or of
another shape, and written as our own stages write adapters. (A complete model that was tuned elsewhere needs no
adopting: it is a `base`.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from artifacts.errors import ModelError
from artifacts.fingerprint import FileDigests, tree_digest
from artifacts.kinds import Adapter, Artifact, Checkpoint
from tasks.context import Context
from tasks.sources import locate, split_hub
from tasks.stage import Stage

FILES = ("adapter_config.json", "adapter_model.safetensors")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Adopt(Stage):
    """An adapter on `base`, from a folder in peft's form or from the hub."""

    seeded: ClassVar[bool] = False
    outside: ClassVar[frozenset[str]] = frozenset({"source"})

    base: Checkpoint
    """What it was trained on."""
    source: str = Field(min_length=1)
    """A folder with adapter_config.json and adapter_model.safetensors, or a hub id."""

    def output(self, key: str, path: Path) -> Artifact:
        return Adapter(key=key, path=path, base=self.base)

    def locate(self, folders: Sequence[Path]) -> Self:
        found = locate(self.source, folders, repo="model")
        if not found.startswith("hub:"):
            _check_usable(Path(found))
        return self.model_copy(update={"source": found})

    def content(self, digests: FileDigests) -> dict[str, Any]:
        if self.source.startswith("hub:"):
            return {"source": self.source}
        folder = Path(self.source)
        return {"source": {"folder": tree_digest(folder, [folder / name for name in FILES], digests)}}

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.adopting import fitted
        from tasks.training.models import parameter_counts, save_adapter

        folder = _folder(self.source)
        config = json.loads((folder / FILES[0]).read_text())
        _check_base(str(config.get("base_model_name_or_path")), self.base, ctx)
        model = fitted(self.base, folder, config)
        save_adapter(model, ctx.out, self.base)
        count = parameter_counts(model)[1]
        ctx.say(f"adopted {count:,} parameters, rank {config['r']}")
        return {"model/parameters": float(count)}


def _check_usable(folder: Path) -> None:
    if not folder.is_dir() or not (folder / FILES[0]).exists():
        raise ModelError(
            f"source: {folder} has no {FILES[0]}; wanted a folder that peft saved (a complete model is a `base`)"
        )
    if not (folder / FILES[1]).exists():
        pickled = (folder / "adapter_model.bin").exists()
        more = ", only a pickle, which runs code when it is loaded; convert it to safetensors first" if pickled else ""
        raise ModelError(f"source: {folder} has no {FILES[1]}{more}")


def _folder(source: str) -> Path:
    if not source.startswith("hub:"):
        return Path(source)
    from huggingface_hub import snapshot_download

    identity, commit = split_hub(source)
    folder = Path(snapshot_download(identity, revision=commit, allow_patterns=list(FILES)))
    _check_usable(folder)
    return folder


def _check_base(named: str, base: Checkpoint, ctx: Context) -> None:
    """Raise ModelError if it names another base of ours; a name of any other kind can only be said."""
    if DIGEST.fullmatch(named) and named != base.digest():
        raise ModelError(
            f"source: the adapter was trained on the base {named[:12]}, but got {base.digest()[:12]}; take the base "
            "that it was trained on"
        )
    if not DIGEST.fullmatch(named):
        ctx.say(f"warning: it says that its base is {named!r}; that its tensors fit is all that can be checked of that")
