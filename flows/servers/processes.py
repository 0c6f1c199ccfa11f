"""Processes that outlive the command that started them: told from all others, and ended with all that they started.

A pid alone says little, since the system gives it to others later. What was started is known by pid, start time and
boot; what it started in turn, by a variable of its environment, which children inherit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "ALIGN_UP"
"""`<token>/<role>` in the environment of everything that `align up` starts."""
PROC = Path("/proc")


def boot() -> str:
    """Another after each start of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot; None if there is none, or only its exit status."""
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else fields[19]


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process after its name: state, parent, ..."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@dataclass(frozen=True)
class Started:
    """A process that we started."""

    pid: int
    start: str
    boot: str

    @classmethod
    def of(cls, pid: int) -> Started:
        return cls(pid, start_of(pid) or "", boot())

    def alive(self) -> bool:
        """Whether it is there still, and no other with its number."""
        return bool(self.start) and start_of(self.pid) == self.start and boot() == self.boot

    def variables(self) -> dict[str, str]:
        """Its environment as it was started with; empty if it is gone, or somebody else's."""
        with suppress(OSError):
            said = (PROC / str(self.pid) / "environ").read_bytes().split(b"\0")
            return {name: value for name, is_one, value in (os.fsdecode(one).partition("=") for one in said) if is_one}
        return {}


def marked(mark: str) -> dict[int, str]:
    """Every process with this mark or, if it ends with a slash, with one that begins so: its start by its pid."""
    wanted = f"\0{MARK}={mark}".encode() + (b"" if mark.endswith("/") else b"\0")
    found = {}
    for folder in PROC.iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        start = start_of(int(folder.name))
        with suppress(OSError):  # gone, or somebody else's
            if start and wanted in b"\0" + (folder / "environ").read_bytes():
                found[int(folder.name)] = start
    return found


def children(parent: Started) -> list[Started]:
    """The processes that `parent` itself has started, as far as they have not ended."""
    if not parent.alive():
        return []
    there = [int(folder.name) for folder in PROC.iterdir() if folder.name.isdecimal()]
    found = [Started.of(pid) for pid in there if _stat(pid)[1:2] == [str(parent.pid)]]
    return [one for one in found if one.start]


def tell(pid: int, start: str, number: int) -> None:
    """Send a signal to the process that started then, and never to a later one with its pid."""
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if start_of(pid) == start:
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def end_asked(processes: Collection[Started], grace_s: float) -> bool:
    """Ask processes to end, and say whether all have within the time; False if there is none."""
    there = [one for one in processes if one.alive()]
    for one in there:
        tell(one.pid, one.start, signal.SIGTERM)
    return bool(there) and _gone(lambda: {one.pid: one.start for one in there if one.alive()}, grace_s)


def end_marked(marks: Collection[str], first: Collection[Started], grace_s: float) -> int:
    """End every process with one of these marks; says how many had to be killed.

    `first` are asked alone to begin with, since they end their own children best; then all that is left is asked, and
    killed after the same time again.
    """

    def left() -> dict[int, str]:
        return {pid: start for mark in marks for pid, start in marked(mark).items()}

    if end_asked(first, grace_s) and _gone(left, grace_s):
        return 0
    for pid, start in left().items():
        tell(pid, start, signal.SIGTERM)
    if _gone(left, grace_s):
        return 0
    killed = left()
    for pid, start in killed.items():
        tell(pid, start, signal.SIGKILL)
    _gone(left, grace_s)
    return len(killed)


def _gone(left: Callable[[], dict[int, str]], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while left():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
