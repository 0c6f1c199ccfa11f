"""Stages that are made afresh: each under the first number under which nothing is finished, here or in MLflow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from artifacts.store import Store
from flows.commands.planning import Wanted, plan_of
from flows.records import load_records
from flows.tracking.earlier_run import FLOW_RUN_TAG, earlier_run
from flows.tracking.elsewhere import is_made
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.tracked_run import TrackedRun
from pipelines.plan import Plan, Planned, branches_of

PLAN = "plan.json"


def plan_to_run(wanted: Wanted, store: Store, flow_run_id: str | None, *, offline: bool) -> Plan:
    """What is to run. In a flow run that is tried again, stages that it made afresh are not made afresh once more."""
    if not wanted.refresh:
        return plan_of(wanted, store)
    numbers = _begun_with(flow_run_id, store.home, offline) if flow_run_id is not None else None
    if numbers is not None:
        return _numbered(numbers, wanted, store)
    plan = plan_of(wanted, store)
    return plan if offline else _unknown_elsewhere(plan, wanted, store)


def _begun_with(flow_run_id: str, home: Path, offline: bool) -> dict[str, int] | None:
    """The number of each stage that this flow run made afresh when it was begun, by label; None if it was not.

    It may have been begun on another machine.
    """
    if (own := next((one for one in load_records(home) if one.flow_run_id == flow_run_id), None)) is not None:
        payloads = json.loads((TrackedRun(home, own.run_id).files / PLAN).read_text())
    elif not offline and (other := earlier_run(home, [FLOW_RUN_TAG], flow_run_id, PLAN)) is not None:
        payloads = other.content
    else:
        return None
    return {label: each["refresh"] for label, each in payloads.items() if "refresh" in each}


def _numbered(numbers: dict[str, int], wanted: Wanted, store: Store) -> Plan:
    plan = plan_of(replace(wanted, refresh=(), until=None), store)
    return plan.numbered(numbers, store, strict_env=wanted.strict_env).until(wanted.until)


def _unknown_elsewhere(plan: Plan, wanted: Wanted, store: Store) -> Plan:
    """With numbers that no other machine has used either, else what that made would be fetched. Raises UserError."""
    server = MlflowServer.reach(store.home)
    if server.is_own:
        return plan
    there = {stage.label for stage in plan.stages}
    named = {label for name in wanted.refresh for label in branches_of(name, list(plan.recipe.stages))} & there
    while True:
        with server.answering():
            known = [label for label in named if _is_made(plan[label], server, store)]
        if not known:
            return plan
        numbers = {stage.label: stage.payload["refresh"] for stage in plan.stages if "refresh" in stage.payload}
        plan = _numbered(numbers | {label: numbers[label] + 1 for label in known}, wanted, store)


def _is_made(stage: Planned, server: MlflowServer, store: Store) -> bool:
    return store.folder(stage.uses, stage.key).exists() or is_made(server, stage.key)
