"""Stages that are made afresh: each under the first number under which nothing is finished, here or in MLflow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from artifacts.store import Store
from flows.commands.planning import Wanted, plan_of
from flows.records import load_records
from flows.tracking.elsewhere import is_made
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.tracked_run import TrackedRun
from pipelines.plan import Plan, branches_of


def plan_to_run(wanted: Wanted, store: Store, flow_run_id: str | None, *, offline: bool) -> Plan:
    """What is to run. In a flow run that is tried again, stages that it made afresh are not made afresh once more."""
    if not wanted.refresh:
        return plan_of(wanted, store)
    numbers = _begun_with(flow_run_id, store.home)
    if numbers is not None:
        return _numbered(numbers, wanted, store)
    plan = plan_of(wanted, store)
    return plan if offline else _unknown_elsewhere(plan, wanted, store)


def _begun_with(flow_run_id: str | None, home: Path) -> dict[str, int] | None:
    """The number of each stage that this flow run made afresh when it was begun, by label; None if it was not."""
    own = (record for record in load_records(home) if flow_run_id is not None and record.flow_run_id == flow_run_id)
    if (earlier := next(own, None)) is None:
        return None
    payloads = json.loads((TrackedRun(home, earlier.run_id).files / "plan.json").read_text())
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
            known = [label for label in named if is_made(server, plan[label].key)]
        if not known:
            return plan
        numbers = {stage.label: stage.payload["refresh"] for stage in plan.stages if "refresh" in stage.payload}
        plan = _numbered(numbers | {label: numbers[label] + 1 for label in known}, wanted, store)
