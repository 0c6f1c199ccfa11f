"""Locks that the kernel drops when their holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_S = 0.2


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether the lock at `path` is ours until the end of the block; with `wait` it is, sooner or later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if wait:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield wait or locked(fd)
    finally:
        os.close(fd)


def locked(fd: int) -> bool:
    """Whether the lock of an open file is ours now; never waits."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(taken: Callable[[], bool], waiting: Callable[[], None]) -> None:
    """Try again until it is taken; `waiting` is called in between, and may raise to give up.

    Nobody could wake a thread that sleeps in the kernel's own waiting.
    """
    while not taken():
        waiting()
        time.sleep(INTERVAL_S)
