"""Trainers in forks of the tests' process, which need not import everything anew, and are killed at any time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm


def with_locks_of_its_own() -> None:
    """To be called in the fork: it shares tqdm's lock, which nobody gets again when its holder is killed."""
    tqdm.set_lock(threading.RLock())


def as_a_trainer(log: Path) -> None:
    """To be called in the fork: what it says goes to the end of this file."""
    with_locks_of_its_own()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def nothing() -> None:
    """Done before a process begins."""


class Forked:
    """What `python -m tasks job.json` does, in a fork; it is asked and killed as a `Popen` is."""

    def __init__(self, job: Path, before: Callable[[], None] = nothing, **environment: str) -> None:
        self.log = job.with_name("log.txt")
        self.log.unlink(missing_ok=True)
        arguments = (job, self.log, before, environment)
        self.process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it has said, once it has ended."""
        self.wait(timeout)
        return self.log.read_text(), None

    def send_signal(self, number: signal.Signals) -> None:
        if self.process.pid is not None and self.process.exitcode is None:
            os.kill(self.process.pid, number)


def _work(job: Path, log: Path, before: Callable[[], None], environment: dict[str, str]) -> None:
    as_a_trainer(log)
    os.environ.update(environment)
    before()
    from tasks.__main__ import main

    os._exit(main([str(job)]))
