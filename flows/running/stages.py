"""What every flow does in the end: a plan's stages as cached Prefect tasks, tracked in MLflow, with a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from prefect import State, task
from prefect.context import FlowRunContext
from prefect.exceptions import FailedRun, MissingContextError
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Failed

from artifacts.errors import AlignError, InterruptedStage, StageError, UserError
from artifacts.store import Store
from flows.addresses import without_secrets
from flows.commands.planning import Wanted
from flows.commands.summary import conclude
from flows.deployments.deployed import check_code
from flows.home import align_home
from flows.links import mlflow_page
from flows.records import RunRecord, run_id_for
from flows.running.afresh import plan_to_run
from flows.running.caching import StageKey
from flows.running.ephemeral import guard_ephemeral_servers
from flows.running.execute import StageResult, execute, found
from flows.running.lost import end_all_lost, tell_prefect
from flows.running.own_state import cancelled, heeding
from flows.running.run_page import OnPage, flow_page, show_plan, show_report
from flows.running.schedule import Schedule
from flows.running.steering import leave, pause_asked_for, pausing, suspended
from flows.running.watch import Watcher, watcher
from flows.tracking.earlier_run import begun_elsewhere
from flows.tracking.tracked_run import Origin
from flows.tracking.tracker import Tracker
from pipelines.plan import Plan, Planned
from pipelines.reasons import Verdict, verdicts

Answer = dict[str, Any] | State[Any]
AGAIN = "see to that, then run the same command again to go on"


def answer(run: Callable[[], Answer]) -> Answer:
    """What a flow gives: what became of its run or, on a server's pages, a failure in our words alone.

    Whoever calls a flow from Python gets the error itself.
    """
    watch = _told()
    try:
        with heeding(watch):
            check_code(_deployment_version(), partial(watch.line, "code"))
            return run()
    except KeyboardInterrupt:
        if (state := cancelled()) is None:
            raise
        return state
    except AlignError as error:
        said = without_secrets(str(error))
        if deployment.id is None or error.exit_status == InterruptedStage.exit_status:
            raise type(error)(said) from None  # Prefect keeps all that is said here, and what is behind it
        watch.logger.error("%s", said)
        told = logging.getLogger("prefect.flow_runs")
        told.addFilter(_not_told_again)
        for handler in told.handlers:
            handler.flush()  # a page that shows the run as failed no longer looks for what it said
        return Failed(message=said)
    finally:
        leave()


def _not_told_again(record: logging.LogRecord) -> bool:
    """Prefect would log a flow's own `Failed` once more, as an unexpected exception with a traceback."""
    return record.exc_info is None or not isinstance(record.exc_info[1], FailedRun)


def run_stages(wanted: Wanted, *, jobs: int = 1, offline_tracking: bool = False) -> dict[str, Any]:
    """Run what is wanted, each stage from the cache if nothing that it depends on has changed; gives the run's record.

    Called within a flow. Raises AlignError with every stage's message if any failed.
    """
    if jobs < 1:
        raise UserError(f"jobs: wanted 1 or more, got {jobs}")
    guard_ephemeral_servers()
    watch = _told()
    store = Store(align_home())
    plan = plan_to_run(wanted, store, flow_run.id, offline=offline_tracking)
    store.check_writable(sum(p.stage.disk_bytes() for p in plan.stages if not store.folder(p.uses, p.key).exists()))
    said = verdicts(plan, store)
    _say(plan, said, wanted, watch)
    # Only a run of a deployment is tried again on another machine.
    shared = deployment.id is not None and not offline_tracking
    elsewhere = begun_elsewhere(store.home, flow_run.id) if shared else None
    run_id = run_id_for(store.home, plan.recipe.name, flow_run.id, elsewhere)
    origin = Origin(flow_run.id, flow_page(), wanted.changes, _running_since())
    tracker = Tracker.begin(store, plan, run_id, origin, watch, offline=offline_tracking)
    lost = end_all_lost(store.home)
    tell_prefect(store.home, lost, partial(watch.line, "prefect"))
    for one in lost:
        tracker.also(one)
    watch.begin(run_id, tracker.run.log)
    results: dict[str, StageResult] = {}

    def recorded() -> RunRecord:
        record = RunRecord.of(plan, run_id, flow_run.id, tracker, results)
        record.save(store.home)
        return record

    page = OnPage(watch, lambda: mlflow_page(tracker.mlflow_run_id))
    schedule = Schedule(plan, results, page)
    try:
        show_plan(plan, said, recorded(), tracker)
        with page.showing(), pausing(page):
            schedule.run(lambda planned: _run_stage(planned, plan, store, tracker, page), jobs, recorded)
        summary = conclude(recorded(), tracker, store, origin.ui)
        record = recorded()
    except BaseException as error:
        _cut_short(RunRecord.of(plan, run_id, flow_run.id, tracker, results), tracker, store)
        if isinstance(error, OSError):
            _raise([*schedule.errors, StageError(f"{run_id}: what became of it can't be kept: {error}; {AGAIN}")])
        raise
    show_report(summary, record, tracker)
    if tracker.lacks:
        lacking = "MLflow does not have all of it, and what it lacks goes with this disk; its log says why"
        schedule.errors.append(StageError(f"{run_id}: {lacking}"))
    _raise(schedule.errors)
    return record.as_dict()


def _running_since() -> float | None:
    """By the clock of Prefect's server."""
    context = FlowRunContext.get()
    state = context.flow_run.state if context and context.flow_run else None
    return state.timestamp.timestamp() if state is not None and state.is_running() else None


def _cut_short(record: RunRecord, tracker: Tracker, store: Store) -> None:
    """No run may look as if it went on that was interrupted, or met an error of our own."""
    with suppress(OSError):  # a disk without room keeps what it has; the run looks killed once its process is gone
        record.save(store.home)
    if (tracker.run.facts or {}).get("status") == "RUNNING":  # else it had ended
        with suppress(OSError):
            tracker.end("KILLED", record.stages)


def _deployment_version() -> str | None:
    """Of the deployment whose flow run this is; None for a run of no deployment."""
    context = FlowRunContext.get()
    return context.flow_run.deployment_version if context and context.flow_run else None


def _say(plan: Plan, said: Mapping[str, Verdict], wanted: Wanted, watch: Watcher) -> None:
    """What is worth knowing of the plan before it runs."""
    for label, verdict in said.items():
        if verdict.drift and verdict.cached:
            watch.line(label, f"cached, but {verdict.drift}")
    for planned in plan.stages:
        if wanted.refresh and (number := planned.payload.get("refresh")) is not None:
            watch.line(planned.label, f"is made afresh; {planned.label}.refresh={number} names this result again")


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
        task_run_name=f"{planned.label}-{planned.key[:8]}".replace("{", "{{").replace("}", "}}"),  # it is a template
        cache_policy=StageKey(planned=planned, store=store),
        persist_result=True,
        result_serializer="json",
    )(stage)
    cached(planned.key)
    return made[0] if made else found(planned, store, tracker)


def _told() -> Watcher:
    """The watcher of this run, which tells Prefect's log what it hears."""
    watch = watcher()
    with suppress(MissingContextError):
        watch.logger = get_run_logger()
    return watch


def _raise(errors: list[AlignError]) -> None:
    """Make the flow run `Failed`, with every stage's message."""
    if errors:
        kind = UserError if any(isinstance(error, UserError) for error in errors) else StageError
        raise kind("\n".join(str(error) for error in errors))
