"""Takes what stages leave on disk to MLflow, in a thread of its own: a server that is slow or gone holds nobody up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial

from mlflow.exceptions import MlflowException

from flows.addresses import reason
from flows.running.watch import Watcher
from flows.seconds import seconds
from flows.tracking.mlflow_server import REFUSED, MlflowServer
from flows.tracking.pulse import Pulse
from flows.tracking.tracked_run import TrackedRun
from flows.tracking.tracked_stage import TrackedStage

INTERVAL_S = 2.0
PATIENCE, PATIENCE_S = "ALIGN_SEND_PATIENCE", 120.0
"""How many seconds the end of a run waits for a slow server; what is left then is `align sync`'s.

The variable is for where that can't be: a container's disk goes with it, and what it holds would be made again.
"""


class Courier(threading.Thread):
    """Never raises. What can't be sent now stays on disk and is tried again."""

    def __init__(self, server: MlflowServer, watcher: Watcher) -> None:
        super().__init__(name="courier", daemon=True)
        self.server, self.watcher, self.patience_s = server, watcher, seconds(PATIENCE, PATIENCE_S)
        self.insists = bool(os.environ.get(PATIENCE))
        """Whether it tries again and again as long as that; else once, however long that takes."""
        self._stages: dict[TrackedStage, str] = {}
        self._errands: list[Callable[[], object]] = []
        self._awake, self._stopping, self._rounds = threading.Event(), threading.Event(), 0
        self.lost = False
        """Whether anything could not be sent the last time."""
        self._problems: list[Exception] = []
        self._pulse = Pulse(server, self._at_work)
        self._making: set[TrackedStage] = set()

    def carry(self, stage: TrackedStage, status: str) -> None:
        """Send what this stage has, from now on; its run has this status."""
        self._making.discard(stage)
        self._stages[stage] = status
        self._awake.set()

    def making(self, stage: TrackedStage) -> None:
        """It is this machine that makes it, though it may have to wait for a GPU first."""
        self._making.add(stage)

    def also(self, errand: Callable[[], object]) -> None:
        """Do this too, as soon as it can be done."""
        self._errands.append(errand)

    def run(self) -> None:
        if not self.server.is_own:  # else nobody elsewhere makes the same
            self._pulse.start()
        while not self._stopping.is_set():
            self.deliver()
            self._awake.wait(INTERVAL_S)
            self._awake.clear()

    def _at_work(self) -> list[str]:
        """The runs of the stages that are being made, or are made and not all there yet."""
        sending = [stage for stage, status in list(self._stages.items()) if status in ("RUNNING", "FINISHED")]
        runs = [stage.sent(self.server.name).run_id for stage in {*sending, *self._making.copy()}]
        return [run for run in runs if run is not None]

    def hurry(self, patience_s: float) -> None:
        """Send now; wait for it, but no longer than this."""
        wanted, deadline = self._rounds + 2, time.monotonic() + patience_s  # one may be half done
        while self._rounds < wanted and time.monotonic() < deadline and self.is_alive():
            self._awake.set()
            time.sleep(0.02)

    def deliver(self) -> bool:
        """Try to send everything; says whether all of it is there."""
        stages = list(self._stages.items())
        stages.sort(key=lambda each: each[1] != "RUNNING")  # new runs first, for others to see
        self._problems = []
        sent = [self._try(partial(self._stage, stage, status)) for stage, status in stages]
        self._errands = [errand for errand in self._errands if not self._try(errand)]
        self._say()
        self._rounds += 1
        return all(sent)

    def finish(self, last: Callable[[], None], patience_s: float | None = None) -> bool:
        """Send all that is left and, after it, `last`; says whether that could be done in time."""
        patience_s = self.patience_s if patience_s is None or self.insists else patience_s
        deadline = time.monotonic() + patience_s
        self._stopping.set()
        self._awake.set()
        done: list[bool] = []

        def rest() -> None:
            self.join()
            while not (sent := self.deliver() and self._try(last)):
                self._say()
                if not self.insists or self.refused or time.monotonic() + INTERVAL_S > deadline:
                    break
                time.sleep(INTERVAL_S)
            self._pulse.over.set()
            done.append(sent)

        ending = threading.Thread(target=rest, daemon=True)
        ending.start()
        ending.join(patience_s)
        if done != [True]:
            self.watcher.line("mlflow", "does not have all of this run yet; `align sync` sends what it lacks")
        return done == [True]

    def _stage(self, stage: TrackedStage, status: str) -> bool:
        if (facts := stage.facts) is None:  # made elsewhere, which has sent it
            self._stages.pop(stage, None)
            return True
        parent = TrackedRun(stage.store.home, facts["run_id"])  # of an earlier run, if the stage began in that
        run = parent.open(self.server)
        if run is None and parent.facts is not None:  # someone else is making it just now
            return False
        done = stage.send(self.server, run, status)
        if done and status != "RUNNING" and self._stages.get(stage) == status:
            del self._stages[stage]
        return done

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            done = action() is not False
        except FileNotFoundError:  # a draft that became a result, a checkpoint that made way
            return False
        except Exception as error:  # whatever it is, no run ends for what MLflow, or our way to it, does
            self._problems.append(error)
            return False
        return done

    def _say(self) -> None:
        """What is wrong, once, however many things can't be sent for it."""
        problem = self._problems[0] if self._problems else None
        if problem is not None and not self.lost:
            self.watcher.line("mlflow", f"does not take what it is sent; it waits on disk: {reason(problem)}")
        elif problem is None and self.lost:
            self.watcher.line("mlflow", "takes it again")
        self.lost = problem is not None

    @property
    def refused(self) -> bool:
        """Whether the server does not know the login any more, for which no waiting helps."""
        return any(isinstance(error, MlflowException) and error.error_code in REFUSED for error in self._problems)
