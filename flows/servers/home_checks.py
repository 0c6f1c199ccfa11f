"""`$ALIGN_HOME`: whether it can be written, its databases, who works on what, slots, runs whose process is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from artifacts.locking import held
from flows.servers import databases
from flows.servers.findings import BROKEN, OK, WARNING, Finding

STILL_S = 6 * 3600.0
"""A stage that has written nothing for so long may hang."""
THOROUGH_BYTES = 1 << 30


def home_found(home: Path) -> Iterator[Finding]:
    place = home
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            "home", BROKEN, f"{place} can't be written", "set ALIGN_HOME to another folder, or correct its rights"
        )
        return
    yield Finding("home", OK, f"{home}" + ("" if home.exists() else ", which the first run makes"))


def databases_found(home: Path) -> Iterator[Finding]:
    """Whether both can be read and written, and are whole."""
    for role, name in databases.NAMES.items():
        path = home / name
        if not path.exists():
            continue
        if found := databases.problem(path, thorough=path.stat().st_size < THOROUGH_BYTES):
            yield Finding("databases", BROKEN, f"{path}: {found}",
                          f"`align down`, then put a good copy of it in its place, or move it away: {role} begins an "
                          "empty one, and for MLflow `align sync` fills it again")  # fmt: skip
        else:
            yield Finding("databases", OK, f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def locks_found(home: Path) -> Iterator[Finding]:
    """Stages that somebody works on now: who, and whether anything comes of it."""
    for lock in sorted((home / "locks").glob("*-*")):
        with held(lock) as is_free:
            if is_free:
                continue
        who = ", ".join(holders(lock)) or lock.read_text() or "a process that can't be seen"
        draft = home / "drafts" / lock.name
        still = time.time() - _touched(draft) if draft.exists() else 0.0
        if still > STILL_S:
            found = f"{lock.name}: held by {who}, untouched for {still / 3600:.0f} hours"
            yield Finding("locks", WARNING, found, "if it hangs, end it: the next run goes on from its last checkpoint")
        else:
            yield Finding("locks", OK, f"{lock.name} is worked on by {who}")


def slots_found(home: Path) -> Iterator[Finding]:
    """GPUs and other slots of this machine that are taken, by runs of whichever home."""
    from flows.running.slots import held_slots

    for name, holder in held_slots():
        yield Finding("slots", OK, f"{name} is held by {holder}")


def holders(path: Path) -> list[str]:
    """Who has a file open, of the processes that may be looked at."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # gone, or somebody else's
            if folder.name.isdecimal() and any(link.samefile(path) for link in _open_files(folder)):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
                found.append(f"process {folder.name} ({words[:80]})")
    return found


def _open_files(folder: Path) -> Iterator[Path]:
    for link in (folder / "fd").iterdir():
        if str(link.readlink()).startswith("/"):
            yield link


def _touched(folder: Path) -> float:
    """When anything in it last changed, in seconds since the epoch."""
    newest = folder.stat().st_mtime
    for path in folder.rglob("*"):
        with suppress(OSError):
            newest = max(newest, path.lstat().st_mtime)
    return newest


def lost_runs_found(home: Path) -> Iterator[Finding]:
    """Runs that look as if they went on though their process is gone."""
    if not (home / "runs").exists():
        return
    from flows.records import load_records
    from flows.running.run_folder import RunFolder

    records = load_records(home)
    lost = [record.run_id for record in records if RunFolder(home, record.run_id).lost()]
    for run_id in lost:
        yield Finding("runs", WARNING, f"{run_id}: its process is gone without a word",
                      "`align sync` tells MLflow and Prefect; run the same recipe again to go on")  # fmt: skip
    if not lost:
        yield Finding("runs", OK, f"{len(records)} runs, none lost")
