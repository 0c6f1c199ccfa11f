"""Trainers in forks of the tests' process, which are killed at any time."""

from __future__ import annotations

import threading

from tqdm import tqdm


def with_locks_of_its_own() -> None:
    """To be called in the fork: it shares tqdm's lock, which nobody gets again when its holder is killed."""
    tqdm.set_lock(threading.RLock())
