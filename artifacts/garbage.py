"""What under `$ALIGN_HOME` nobody refers to any more, and its removal, which may be killed at any moment.

A folder first moves to `trash/` in one step, so that the store never holds half of one; the trash is emptied after.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from artifacts.locking import held
from artifacts.store import Store

DAY_S = 86_400.0


@dataclass(frozen=True)
class Garbage:
    """A folder that can go."""

    folder: Path
    why: str

    @property
    def size(self) -> int:
        """Bytes that it frees: a file that has another name somewhere, as in MLflow's folder, frees none."""
        files = (path.lstat() for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(stat.st_size for stat in files if stat.st_nlink == 1)


def find_garbage(store: Store, kept: set[str], draft_days: float) -> list[Garbage]:
    """All that can go; `kept` are the names (`<uses>-<key>`, as the store writes them) of what must stay.

    Unfinished work stays too for `draft_days` after it was last touched, and for as long as anyone works on it.
    """
    results = _folders(store.home / "store")
    found = [Garbage(path, "no kept run refers to it") for path in results if path.name not in kept]
    for path in _folders(store.home / "drafts"):
        days = (time.time() - _touched(path)) / DAY_S
        if path.name not in kept and days >= draft_days:
            found.append(Garbage(path, f"unfinished, and not touched for {days:.0f} days"))
    found += [Garbage(path, "damaged, and made again since") for path in _folders(store.home / "damaged")]
    found += [Garbage(path, "left by a clean-up that was interrupted") for path in _folders(store.home / "trash")]
    return [garbage for garbage in found if not worked_on(store, garbage.folder.name)]


def remove(store: Store, garbage: Garbage) -> bool:
    """Take it away, unless someone has begun to work on it; says whether it is gone."""
    trash = store.home / "trash"
    if garbage.folder.parent != trash:
        with held(store.home / "locks" / garbage.folder.name) as free:
            if not free:
                return False
            trash.mkdir(exist_ok=True)
            moved = trash / f"{garbage.folder.name}-{time.time_ns()}"
            garbage.folder.rename(moved)
    else:
        moved = garbage.folder
    shutil.rmtree(moved)
    return True


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*") if path.is_dir())


def _touched(folder: Path) -> float:
    """When anything in it last changed, in seconds since the epoch."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def worked_on(store: Store, name: str) -> bool:
    """Whether somebody holds the key behind this folder's name."""
    with held(store.home / "locks" / name) as free:
        return not free
