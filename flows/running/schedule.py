"""Which stage is next: each as soon as its inputs are there, several at a time if so wished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import AlignError, StageError, UserError
from flows.running.execute import StageResult, missing
from flows.running.launch import ENDING, end_trainers
from flows.running.steering import SAVING_S, pause_asked_for
from flows.running.watch import Watcher
from pipelines.plan import Plan, Planned

RunStage = Callable[[Planned], StageResult]


class Here(Executor):
    """Runs what it is given at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except (AlignError, OSError) as error:
            future.set_exception(error)
        return future


@dataclass
class Schedule:
    """A run of a plan's stages; `results` has a line for each that it has come to."""

    plan: Plan
    results: dict[str, StageResult]
    watch: Watcher
    errors: list[AlignError] = field(default_factory=list)

    def run(self, run_stage: RunStage, jobs: int, after_each: Callable[[], object]) -> list[AlignError]:
        """Run every stage whose inputs are there, at most `jobs` at a time, and give the errors.

        A wrong input ends the run, a failure only its descendants. With one job all is done in this thread.
        """
        ENDING.clear()
        waiting, running = list(self.plan.stages), dict[Future[StageResult], tuple[Planned, float]]()
        with _workers(jobs) as workers:
            while waiting or running:
                for planned in [one for one in waiting if all(label in self.results for label in one.needs)]:
                    if len(running) == jobs:
                        break
                    waiting.remove(planned)
                    if (reason := self._obstacle(planned)) is not None:
                        self.results[planned.label] = missing(planned, "skipped", reason)
                        continue
                    started = time.monotonic()
                    running[workers.submit(copy_context().run, run_stage, planned)] = planned, started
                for done in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    planned, started = running.pop(done)
                    self._ended(planned, done, time.monotonic() - started)
                    self._look_ahead(waiting)
                    after_each()
        return self.errors

    def _obstacle(self, planned: Planned) -> str | None:
        if lacking := [label for label in planned.needs if self.results[label].path is None]:
            return f"{', '.join(lacking)} has no output"
        return "the run ended before it" if any(isinstance(error, UserError) for error in self.errors) else None

    def _ended(self, planned: Planned, done: Future[StageResult], seconds: float) -> None:
        """Write down how a stage ended; raises what is no error of a stage."""
        try:
            result = done.result()
        except (AlignError, OSError) as error:
            self.errors.append(error if isinstance(error, AlignError) else StageError(f"{planned.label}: {error}"))
            result = missing(planned, "failed", str(self.errors[-1]), seconds)
        self.results[planned.label] = result
        self.watch.stage(planned.label, result.status, result.error or f"{result.seconds:.0f} s")

    def _look_ahead(self, waiting: list[Planned]) -> None:
        """What the plan could not see yet, such as a name that a base does not have, ends the run before it trains."""
        for planned in list(waiting):
            if problem := planned.stage.input_problem():
                waiting.remove(planned)
                self.errors.append(UserError(f"{planned.label}: {problem}"))
                self.results[planned.label] = missing(planned, "failed", str(self.errors[-1]))
                self.watch.stage(planned.label, "failed", problem)


@contextmanager
def _workers(jobs: int) -> Iterator[Executor]:
    """An executor; on any way out of the block but the end, the trainers that run in its threads are ended first.

    A trainer dies with the thread that started it: these threads live as long as the block.
    """
    if jobs == 1:
        yield Here()
        return
    with ThreadPoolExecutor(jobs, "stage") as workers:
        try:
            yield workers
        except BaseException:  # Ctrl-C too, which only the main thread hears
            workers.shutdown(wait=False, cancel_futures=True)
            end_trainers(SAVING_S if pause_asked_for() else None)
            raise
