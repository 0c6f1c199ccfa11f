"""A stage's run in MLflow beats while somebody works on it, so that another machine waits instead of making it too.

MLflow itself does not know: the run of a machine that died is `RUNNING` for ever. Clocks differ between machines, so
that a pulse is seen by its changing.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.entities import Run

from artifacts.locking import held
from artifacts.syncing import write_whole
from flows.tracking.mlflow_server import MlflowServer

PULSE_TAG = "align.pulse"
BEAT_S = 10.0
WATCHED_S = 35.0
"""A run whose pulse does not change for so long is nobody's."""
POLL_S = 1.0


def first_beat(home: Path) -> str:
    """What a run has from its beginning: the machine's name, for people; whose it is; and a number that changes.

    Whose: the home's, whatever it or the machine is called. Runs of one home have locks, and need none of each other's.
    """
    return f"{socket.gethostname()} {_maker(home)} start"


def _maker(home: Path) -> str:
    path = home / "tracking" / "maker"
    with held(home / "locks" / "maker", wait=True):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, secrets.token_hex(8))
        return path.read_text()


class Pulse(threading.Thread):
    """Beats for the runs that `at_work` names, as long as it can; nothing fails with it."""

    def __init__(self, server: MlflowServer, at_work: Callable[[], Iterable[str]]) -> None:
        super().__init__(name="pulse", daemon=True)
        self.server, self.at_work, self.over = server, at_work, threading.Event()

    def run(self) -> None:
        name = first_beat(self.server.home).rpartition(" ")[0]
        for beat in itertools.count():
            for run in self.at_work():
                with suppress(Exception):  # whatever MLflow, or our way to it, does
                    if not taken(self.server, run):
                        self.server.client.set_tag(run, PULSE_TAG, f"{name} {beat}")
            if self.over.wait(BEAT_S):
                return


@contextmanager
def beating(server: MlflowServer, run: str) -> Iterator[None]:
    """Within the block this run is ours."""
    pulse = Pulse(server, lambda: [run])
    pulse.start()
    try:
        yield
    finally:
        pulse.over.set()


def beats(server: MlflowServer, run: Run, waiting: Callable[[str], None]) -> bool:
    """Whether somebody elsewhere works on a run, or has until now; raises MlflowException.

    `waiting` is told for whom it waits, again and again until that is known, and may raise too.
    """
    before = _pulse(run)
    if run.info.status != "RUNNING" or _whose(before) in ("", _maker(server.home)):
        return False
    deadline = time.monotonic() + WATCHED_S
    while time.monotonic() < deadline:
        waiting(f"{before.split()[0]}, which works on the same stage: run {run.info.run_id} on {server.shown}")
        time.sleep(POLL_S)
        now = server.client.get_run(run.info.run_id)
        if now.info.status != "RUNNING" or _pulse(now) != before:
            return True
    return False


def claimed(server: MlflowServer, run: str) -> bool:
    """Take a run that nobody works on; says whether it is ours, as it is for one of several. Raises MlflowException."""
    server.client.set_tag(run, PULSE_TAG, first_beat(server.home))
    server.client.update_run(run, status="RUNNING")
    time.sleep(2 * POLL_S)
    return _whose(_pulse(server.client.get_run(run))) == _maker(server.home)


def taken(server: MlflowServer, run: str) -> bool:
    """Whether another machine goes on in a run of ours, since no beat came from here for a while."""
    return _whose(_pulse(server.client.get_run(run))) not in ("", _maker(server.home))


def _pulse(run: Run) -> str:
    return str(run.data.tags.get(PULSE_TAG, ""))


def _whose(pulse: str) -> str:
    return pulse.split()[1] if len(pulse.split()) == 3 else ""
