"""A trainer's checkpoints: complete and intact, or not there at all.

    work/saving/            where one is being written, and all that a crash amid a save leaves behind
    work/checkpoint-<n>/    a complete one: its `manifest.json` has the digest of each of its files

A checkpoint is written aside, synced to the disk, given its manifest, and only then renamed to what counts.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from artifacts.errors import StageError
from artifacts.fingerprint import file_digest
from artifacts.syncing import sync_file, sync_folder, write_synced

SHARDING = "sharding"
"""Of a checkpoint whose weights are divided among processes: the file that says among which."""
MARGIN = 1 << 20
"""Free bytes beyond the checkpoint's own: for the log and the metrics."""


def saving(work: Path) -> Path:
    """The folder in which a trainer writes `checkpoint-<n>` before it counts."""
    return work / "saving"


def newest_checkpoint(work: Path, say: Callable[[str], None], sharding: str = "") -> Path | None:
    """The newest checkpoint that is complete, intact and divided as `sharding` says; every newer one is passed over
    with a warning.

    Clears away what an interrupted save left.
    """
    shutil.rmtree(saving(work), ignore_errors=True)
    for path in reversed(_numbered(work)):
        if (problem := damage(path) or _other_sharding(path, sharding)) is None:
            return path
        say(f"warning: {path.name} is passed over: {problem}")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    for name, sha in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != sha:
            return f"the content of {name} has changed"
    return None


def _other_sharding(checkpoint: Path, wanted: str) -> str | None:
    """Why weights in these parts can't be gone on from, or None."""
    file = checkpoint / SHARDING
    got = file.read_text() if file.exists() else ""
    if got == wanted:
        return None
    return f"its weights are {got or 'whole'}, and {wanted or 'whole'} ones are wanted"


def publish(aside: Path, work: Path, keep: int) -> Path:
    """Make the checkpoint in `aside` count, then let go of those beyond the newest `keep`.

    Any of the same or a higher number make way: they were damaged, or training would have gone on from them.
    """
    files = {}
    for path in sorted(aside.rglob("*")):
        if path.is_file():
            sync_file(path)
            files[path.relative_to(aside).as_posix()] = file_digest(path)
    write_synced(aside / "manifest.json", json.dumps(files))
    for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
        sync_folder(folder)
    final = work / aside.name
    for passed_over in _numbered(work):
        if _number(passed_over) >= _number(final):
            shutil.rmtree(passed_over)
    aside.rename(final)
    shutil.rmtree(aside.parent)
    sync_folder(work)
    for old in _numbered(work)[:-keep]:
        shutil.rmtree(old)
    return final


def require_space(work: Path, needed: int) -> None:
    """Raise StageError unless a checkpoint of `needed` bytes fits on the disk; the ones that are there stay."""
    free = shutil.disk_usage(work).free
    if free < needed + MARGIN:
        raise StageError(
            f"the disk is full: a checkpoint wants {needed / 2**20:,.0f} MiB at {work}, which has "
            f"{free / 2**20:,.0f} MiB free; {last_good(work)}. Make room and run the same command again"
        )


def disk_is_full(error: BaseException, work: Path) -> bool:
    """Whether a failure is that of a disk without room: writers of tensors say so in words of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return shutil.disk_usage(work).free < MARGIN


def last_good(work: Path) -> str:
    """A phrase that names the newest intact checkpoint."""
    intact = next((path for path in reversed(_numbered(work)) if damage(path) is None), None)
    return f"the last good checkpoint is {intact.name}" if intact else "there is no checkpoint yet"


def _numbered(work: Path) -> list[Path]:
    """Every checkpoint, the newest last."""
    return sorted(work.glob("checkpoint-*"), key=_number)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])
