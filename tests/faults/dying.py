"""`python -m tests.faults.dying HOW NUMBER job.json`: `python -m tasks job.json`, killed amid what it does to files.

HOW `at`: before the nth time that it opens, syncs, renames or removes something of its work or output.
HOW `amid`: at the nth file that it syncs in a save, of which only the first half has reached the disk.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename": 0, "os.mkdir": 0, "shutil.rmtree": 0}
"""Events of Python's audit hooks and where their path stands; those that make or remove something."""


class Death:
    """Counts what happens to the files of a draft, and ends the process there."""

    def __init__(self, how: str, number: int, draft: Path) -> None:
        self.how, self.left = how, number
        self.places = tuple(str(draft / name) for name in ("work", "out"))
        self.sync = os.fsync

    def arm(self) -> None:
        """From now on."""
        os.fsync = self.fsync
        if self.how == "at":
            sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: Sequence[Any]) -> None:
        """What Python is about to do."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES:
                self.touched(path)
        elif event in CHANGES:
            self.touched(arguments[CHANGES[event]])

    def fsync(self, fd: int) -> None:
        """Stands before the real one."""
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if self.how == "at":
            self.touched(path)
        elif stat.S_ISREG(os.fstat(fd).st_mode) and str(path).startswith(self.places[0]):
            self.counted(path)
        self.sync(fd)

    def touched(self, path: Any) -> None:
        """One of the draft's files, or not."""
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.places):
            self.counted(None)

    def counted(self, torn: Path | None) -> None:
        """The next; perhaps the last."""
        self.left -= 1
        if self.left == 0:
            if torn is not None:
                os.truncate(torn, torn.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    how, number, job = sys.argv[1:]
    Death(how, int(number), Path(job).parent).arm()
    from tasks.__main__ import main

    sys.exit(main([job]))
