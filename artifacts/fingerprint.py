"""Identity: canonical JSON, and digests of values, files and folders.

A value that has no stable form (a callable, an object whose text is its address, NaN) is refused rather than
hashed by chance. No path, host or clock ever enters a digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifacts.errors import FingerprintError

CHUNK = 1 << 20
RACY_NS = 50_000_000
"""A file written within this time may change again without its time changing, so it isn't remembered yet."""


def canonical(value: Any) -> str:
    """`value` as JSON with one spelling: sorted keys, no blanks, sets sorted, floats in shortest form."""
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FingerprintError(f"{where}: {value} has no canonical form; give a finite number")
        return value
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise FingerprintError(f"{where}: keys must be text, got {bad[0]!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, where) for item in value), key=canonical)
    raise FingerprintError(
        f"{where}: a {type(value).__name__} has no stable form; give text, numbers, lists or mappings"
    )


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _seen(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


class FileDigests:
    """File digests remembered by (path, size, mtime, inode), so that planning over large weights is instant.

    The memory is one JSON file; losing it costs time and nothing else.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        try:
            known = json.loads(memory.read_text())
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> str:
        """The file's digest, read again only when its size, time or inode has changed."""
        seen = _seen(path)
        known = self._known.get(str(path.resolve()))
        if known and known[:3] == seen:
            return str(known[3])
        sha = file_digest(path)
        return self.remember(path, sha) if _seen(path) == seen else sha  # else it was replaced while it was read

    def remember(self, path: Path, sha: str) -> str:
        """Keep a digest that was just computed; returns it."""
        seen = _seen(path)
        if time.time_ns() - seen[1] > RACY_NS:
            self._known[str(path.resolve())] = [*seen, sha]
        return sha

    def save(self) -> None:
        """Write the memory; entries of files that are gone are dropped."""
        kept = {path: seen for path, seen in self._known.items() if Path(path).exists()}
        aside = self.memory.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(kept))
            aside.replace(self.memory)
        with suppress(OSError):
            aside.unlink()


def tree_digest(root: Path, files: Iterable[Path], digests: FileDigests) -> str:
    """One digest of several files below `root`, by relative name and content."""
    return digest({path.relative_to(root).as_posix(): digests.of(path) for path in sorted(files)})
