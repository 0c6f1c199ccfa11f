"""A stage's run in MLflow beats while somebody works on it, so that another machine waits instead of making it too.

MLflow itself does not know: the run of a machine that died is `RUNNING` for ever. Clocks differ between machines, so
that a pulse is seen by its changing.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mlflow.entities import Run

from flows.tracking.mlflow_server import MlflowServer

PULSE_TAG = "align.pulse"
BEAT_S = 10.0
WATCHED_S = 35.0
"""A run whose pulse does not change for so long is nobody's."""
POLL_S = 1.0


def maker_of(home: Path) -> str:
    """Whose pulse it is: runs of one home have locks, and need none of each other's."""
    return f"{socket.gethostname()}:{home}"


class Pulse(threading.Thread):
    """Beats for the runs that `at_work` names, as long as it can; nothing fails with it."""

    def __init__(self, server: MlflowServer, at_work: Callable[[], Iterable[str]]) -> None:
        super().__init__(name="pulse", daemon=True)
        self.server, self.at_work, self.over = server, at_work, threading.Event()

    def run(self) -> None:
        maker = maker_of(self.server.home)
        for beat in itertools.count():
            for run in self.at_work():
                with suppress(Exception):  # whatever MLflow, or our way to it, does
                    self.server.client.set_tag(run, PULSE_TAG, f"{maker} {beat}")
            if self.over.wait(BEAT_S):
                return


def beats(server: MlflowServer, run: Run, waiting: Callable[[str], None]) -> bool:
    """Whether somebody elsewhere works on a run, or has until now; raises MlflowException.

    `waiting` is told for whom it waits, again and again until that is known, and may raise too.
    """
    before = _pulse(run)
    if run.info.status != "RUNNING" or before.rpartition(" ")[0] in ("", maker_of(server.home)):
        return False
    deadline = time.monotonic() + WATCHED_S
    while time.monotonic() < deadline:
        waiting(f"{before.partition(':')[0]}, which works on the same stage: run {run.info.run_id} on {server.shown}")
        time.sleep(POLL_S)
        now = server.client.get_run(run.info.run_id)
        if now.info.status != "RUNNING" or _pulse(now) != before:
            return True
    return False


def _pulse(run: Run) -> str:
    return str(run.data.tags.get(PULSE_TAG, ""))
