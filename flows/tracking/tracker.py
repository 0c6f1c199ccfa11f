"""MLflow for one pipeline run: a parent run, and below it a run for each stage that ran.

The server must answer at the start, unless tracking is offline. From then on the truth is on disk, and a courier brings
it to the server: training neither waits for MLflow nor fails with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.errors import InterruptedStage
from artifacts.store import Store
from flows.links import mlflow_server
from flows.records import RunRecord
from flows.running.execute import Waiting
from flows.running.watch import Watcher
from flows.tracking.compare_links import Place, compare_links
from flows.tracking.courier import Courier
from flows.tracking.elsewhere import fetch
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.sync import send_run
from flows.tracking.tracked_run import Origin, TrackedRun
from flows.tracking.tracked_stage import TrackedStage
from pipelines.comparison.comparison import Comparisons
from pipelines.plan import Plan, Planned

HURRY_S = 2.0
"""How long a stage's end waits for its last points and checkpoints to be sent; they are not lost if they are not."""
INTERRUPTED_S = 10.0


class Tracker:
    """What a flow says of itself; `server` is None where tracking is offline."""

    def __init__(self, store: Store, plan: Plan, run_id: str, server: MlflowServer | None, watcher: Watcher) -> None:
        self.store, self.plan, self.server, self.watcher = store, plan, server, watcher
        self.run = TrackedRun(store.home, run_id)
        self.courier = Courier(server, watcher) if server is not None else None
        self.ui: str | None = None
        """Prefect's page of the flow run."""
        self.lacks = False
        """Whether MLflow lacks something of a run that has ended, where the disk goes with it."""
        self._known: dict[str, str | None] = {}

    @classmethod
    def begin(
        cls, store: Store, plan: Plan, run_id: str, origin: Origin, watcher: Watcher, *, offline: bool
    ) -> Tracker:
        """The parent run. Raises UserError within seconds if MLflow is wanted and does not answer."""
        server = None if offline else MlflowServer.reach(store.home, plan.recipe.name)
        tracker = cls(store, plan, run_id, server, watcher)
        tracker.ui = origin.ui
        waiting = partial(Waiting(run_id, watcher), "its earlier process, still at work")
        tracker.run.begin(plan, origin, waiting)
        if server is not None and tracker.courier is not None:
            with suppress(Exception):  # it answered a moment ago; the courier tries again, and says what is wrong
                tracker.run.open(server)
            tracker.courier.start()
        return tracker

    @property
    def fetches(self) -> bool:
        """Whether other machines may have made stages, which are fetched then."""
        return self.server is not None and not self.server.is_own

    def fetched(self, planned: Planned, waiting: Callable[[str], None]) -> bool:
        """Whether another machine had made this stage, and its result is here now; its checkpoint may be, if not.

        `waiting` is told for whom it waits, where one there is making it just now.
        """
        if self.server is None or self.courier is None or self.courier.lost:
            return False
        say = partial(self.watcher.line, planned.label)
        if fetch(self.server, self.store, planned.uses, planned.key, say, waiting):
            return True
        self.courier.making(TrackedStage(self.store, planned.uses, planned.key))
        return False

    @contextmanager
    def following(self, planned: Planned) -> Iterator[None]:
        """Has the stage's run fed from its draft until its result is committed, the same run when it goes on."""
        stage = TrackedStage(self.store, planned.uses, planned.key)
        stage.note(planned, self.plan, self.run.folder.name, self.ui)
        status = "RUNNING"
        self._carry(stage, status)
        try:
            yield
            status = "FINISHED"
        except BaseException as error:  # no Exception: Ctrl-C, or Prefect's own, for a flow run that was cancelled
            ended = isinstance(error, InterruptedStage) or not isinstance(error, Exception)
            status = "KILLED" if ended else "FAILED"
            raise
        finally:
            self._carry(stage, status)

    def hurry(self) -> None:
        """Send now what there is, and wait for it a little."""
        if self.courier is not None:
            self.courier.hurry(HURRY_S)

    def _carry(self, stage: TrackedStage, status: str) -> None:
        if self.courier is not None:
            self.courier.carry(stage, status)

    @property
    def mlflow_run_id(self) -> str | None:
        """The parent run, once the server has it."""
        return self.run.sent(self.server.name).run_id if self.server is not None else None

    def cached(self, planned: Planned) -> None:
        """A stage that need not run: its run may lack the end, or may have been made from elsewhere."""
        self._carry(TrackedStage(self.store, planned.uses, planned.key), "FINISHED")
        server = self.server
        if server is not None and self.courier is not None and self.run_of(planned.uses, planned.key) is None:
            key = planned.key
            self.courier.also(lambda: self._known.update({key: server.run_of(key)}))

    def run_of(self, uses: str, key: str) -> str | None:
        """A stage's run, made now or earlier, from here or from another machine; None if none is known yet."""
        if self.server is None:
            return None
        return TrackedStage(self.store, uses, key).sent(self.server.name).run_id or self._known.get(key)

    def compare_links(self, comparisons: Comparisons) -> dict[str, str]:
        """MLflow's own pages that compare the stages, without asking it: of stages first made by this recipe."""
        server, recipe = self.server, self.plan.recipe.name
        if server is None:
            return {}
        stages = {planned.key: TrackedStage(self.store, planned.uses, planned.key) for planned in self.plan.stages}

        def place(key: str) -> Place | None:
            stage = stages.get(key)
            run = stage.sent(server.name).run_id if stage else None
            if stage is None or run is None or (stage.facts or {}).get("experiment") != recipe:
                return None
            return Place(run, server.experiment(recipe))

        return compare_links(comparisons, mlflow_server() or server.shown, place)

    def also(self, record: RunRecord) -> None:
        """Send what MLflow lacks of another run too."""
        if self.courier is not None and self.server is not None:
            self.courier.also(partial(send_run, self.server, self.store, record))

    def file(self, name: str) -> Path:
        """Where to put what is to be an artifact of the parent run."""
        return self.run.files / name

    def end(self, status: str, stages: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Close the parent run; `more` is what TrackedRun.end takes."""
        self.run.end(status, **more)
        server, courier = self.server, self.courier
        if server is None or courier is None:
            return

        def close() -> None:
            linked = [{**stage, "mlflow_run_id": self.run_of(stage["uses"], stage["key"])} for stage in stages]
            self.run.close(server, linked)

        delivered = courier.finish(close, INTERRUPTED_S) if status == "KILLED" else courier.finish(close)
        self.lacks = courier.insists and not delivered
