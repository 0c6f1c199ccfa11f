"""Did the kernel kill a process for want of memory? Its own word for it, never a guess from the signal.

SIGKILL alone says nothing: people, schedulers and parents send it too. The kernel writes every such kill into its log
with the process id, and counts it in the control group that was short of memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

KMSG = Path("/dev/kmsg")
GROUPS = Path("/sys/fs/cgroup")


class KernelWitness:
    """Looks at the kernel's log and counters from now on; begin it before the process starts."""

    def __init__(self) -> None:
        self._began_us = time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
        self._kills = kills_in_our_group()

    def killed_for_memory(self, pid: int) -> bool:
        """Whether the kernel's log names the process, or, where that can't be read, our control group counts a kill."""
        try:
            return any(f"Killed process {pid} (" in line for line in _log_since(self._began_us))
        except OSError:
            return kills_in_our_group() > self._kills


def _log_since(began_us: float) -> Iterator[str]:
    """The kernel's messages, each `priority,sequence,microseconds,flags;text`."""
    fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return
            except BrokenPipeError:  # older messages were overwritten while we read
                continue
            head, _, text = record.partition(";")
            if int(head.split(",")[2]) >= began_us - 1e6:
                yield text
    finally:
        os.close(fd)


def kills_in_our_group() -> int:
    """How often the kernel has killed for memory in this process's control group (version 2 or 1), 0 if unknown."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        names = controllers.split(",")
        if names == [""]:
            found = _read(GROUPS / group.lstrip("/") / "memory.events")
        elif "memory" in names:
            found = _read(GROUPS / "memory" / group.lstrip("/") / "memory.oom_control")
        else:
            continue
        counts = dict(entry.split() for entry in found.splitlines())
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
