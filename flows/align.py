"""The flow that people trigger: a recipe, run as cached Prefect tasks."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.home import align_home, prepare_services
from flows.servers.state import use_servers

prepare_services(align_home())
with suppress(OSError):  # whoever may not write there is told so later, and better
    align_home().mkdir(parents=True, exist_ok=True)  # Prefect's own server has its database there
if __name__ == "__main__":
    use_servers(align_home())

from httpx import HTTPError  # noqa: E402
from prefect import State, flow, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.exceptions import MissingContextError, PrefectException  # noqa: E402
from prefect.logging import get_run_logger  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402

from artifacts.errors import AlignError, StageError, UserError  # noqa: E402
from artifacts.store import Store  # noqa: E402
from flows.caching import StageKey  # noqa: E402
from flows.ephemeral import guard_ephemeral_servers  # noqa: E402
from flows.execute import StageResult, execute, found  # noqa: E402
from flows.lost import end_all_lost, tell_prefect  # noqa: E402
from flows.planning import Wanted, plan_of  # noqa: E402
from flows.records import RunRecord, run_id_for  # noqa: E402
from flows.schedule import Schedule  # noqa: E402
from flows.steering import leave, pause_asked_for, pausing, suspended  # noqa: E402
from flows.summary import conclude  # noqa: E402
from flows.tracking import Tracker  # noqa: E402
from flows.watch import Watcher, watcher  # noqa: E402
from pipelines.plan import Plan, Planned  # noqa: E402
from pipelines.reasons import verdicts  # noqa: E402
from pipelines.sweep import MOST_BRANCHES  # noqa: E402


@flow(name="align", validate_parameters=True, persist_result=False)
def align(
    recipe: str = "pipelines/quickstart.yaml",
    overrides: dict[str, Any] | None = None,
    execution: dict[str, Any] | None = None,
    until: str | None = None,
    strict_env: bool = False,
    offline_tracking: bool = False,
    sweep: dict[str, list[Any]] | None = None,
    max_branches: int = MOST_BRANCHES,
    jobs: int = 1,
) -> dict[str, Any]:
    """Run a recipe's stages in order, each from the cache if nothing that it depends on has changed.

    Args:
        recipe: Path of the recipe.
        overrides: Fields that differ from the recipe, such as {"dpo.beta": 0.2}.
        execution: How to run, such as {"threads": 2}; never changes a result.
        until: Stop after this stage.
        strict_env: Let library versions count as part of every stage's identity.
        offline_tracking: Do not talk to MLflow now; `align sync` sends everything later.
        sweep: Fields with several values, such as {"dpo.beta": [0.1, 0.3]}: one branch for each.
        max_branches: More are refused.
        jobs: How many stages may run at the same time.
    """
    if jobs < 1:
        raise UserError(f"jobs: wanted 1 or more, got {jobs}")
    guard_ephemeral_servers()
    watch = watcher()
    watch.logger = _logger(watch)
    store = Store(align_home())
    wanted = Wanted(
        Path(recipe), overrides or {}, execution or {}, sweep or {}, max_branches, until=until, strict_env=strict_env
    )
    plan = plan_of(wanted, store)
    store.check_writable(sum(p.stage.disk_bytes() for p in plan.stages if not store.folder(p.uses, p.key).exists()))
    for label, verdict in verdicts(plan, store).items():
        if verdict.drift and verdict.cached:
            watch.line(label, f"cached, but {verdict.drift}")
    run_id = run_id_for(store.home, plan.recipe.name, flow_run.id)
    tracker = Tracker.begin(store, plan, run_id, flow_run.id, watch, offline=offline_tracking)
    for lost in end_all_lost(store.home):
        tell_prefect(store.home, lost)
        tracker.also(lost)
    watch.run_id = run_id
    results: dict[str, StageResult] = {}

    def recorded() -> RunRecord:
        record = RunRecord.of(plan, run_id, flow_run.id, tracker, results)
        record.save(store.home)
        return record

    recorded()
    try:
        schedule = Schedule(plan, results, watch)
        with pausing(watch):
            errors = schedule.run(lambda planned: _run_stage(planned, plan, store, tracker, watch), jobs, recorded)
    except BaseException:  # interrupted, or an error of our own: no run may look as if it went on
        tracker.end("KILLED", recorded().stages)
        leave()
        raise
    summary = conclude(recorded(), tracker, store, flow_run.ui_url)
    record = recorded()
    with suppress(PrefectException, HTTPError):  # a server that went away meanwhile costs nobody the run
        create_markdown_artifact(summary, key="summary", description=f"Run {run_id}")
    leave()
    _raise(errors)
    return record.as_dict()


def _run_stage(planned: Planned, plan: Plan, store: Store, tracker: Tracker, watch: Watcher) -> StageResult:
    """One Prefect task, named after the stage and cached under its key; called in the thread that this is.

    The task's result is a pointer. If Prefect answers from its cache, the store's manifest gives the line.
    """
    made: list[StageResult] = []

    def stage(key: str) -> dict[str, str] | State[Any]:
        try:
            result = execute(planned, store, tracker, watch, seed=planned.seed, execution=plan.recipe.execution)
        except AlignError:
            if pause_asked_for():
                return suspended()
            raise
        made.append(result)
        return {"key": result.key, "digest": result.digest or ""}

    watch.stage(planned.label, "starts")
    cached = task(
        name=planned.label,
        task_run_name=f"{planned.label}-{planned.key[:8]}",
        cache_policy=StageKey(planned=planned, store=store),
        persist_result=True,
        result_serializer="json",
    )(stage)
    cached(planned.key)
    return made[0] if made else found(planned, store, tracker)


def _logger(watch: Watcher) -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return watch.logger


def _raise(errors: list[AlignError]) -> None:
    """Make the flow run `Failed`, with every stage's message."""
    if errors:
        kind = UserError if any(isinstance(error, UserError) for error in errors) else StageError
        raise kind("\n".join(str(error) for error in errors))


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    align()
