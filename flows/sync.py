"""`align sync`: what MLflow lacks, sent; and runs whose process is gone, no longer shown as running."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlflow.exceptions import MlflowException

from artifacts.errors import StageError
from artifacts.garbage import worked_on
from artifacts.store import Store
from flows.home import align_home
from flows.mlflow_server import MlflowServer
from flows.records import RunRecord, load_records
from flows.tracked_run import TrackedRun
from flows.tracked_stage import TrackedStage


def sync(*, as_json: bool) -> int:
    """Send all that is under `$ALIGN_HOME` and not on the server; can be repeated, and killed."""
    store = Store(align_home())
    server = MlflowServer.reach(store.home)
    sent: list[dict[str, Any]] = []
    try:
        for record in reversed(load_records(store.home)):
            sent += _stages(server, store, record)
            sent += _parent(server, store, record)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise StageError(f"MLflow at {server.uri} went away: {reason}; run `align sync` again to go on") from error
    if as_json:
        print(json.dumps({"server": server.uri, "sent": sent}))
    else:
        print(f"{server.uri}: {len(sent)} runs sent" if sent else f"{server.uri} has everything")
    return 0


def _stages(server: MlflowServer, store: Store, record: RunRecord) -> list[dict[str, Any]]:
    """The stages that this run began, and that the server does not have complete."""
    found = []
    for line in record.stages:
        stage = TrackedStage(store, line["uses"], line["key"])
        facts = stage.facts
        if facts is None or facts["run_id"] != record.run_id or stage.sent(server.name).complete:
            continue
        done = stage.result.exists()
        if not done and worked_on(store, stage.result.name):
            continue  # whoever works on it sends it
        stage.send(server, TrackedRun(store.home, record.run_id).open(server), "FINISHED" if done else "KILLED")
        if done:
            found.append(_said(record, line["name"], stage.sent(server.name).run_id))
    return found


def _parent(server: MlflowServer, store: Store, record: RunRecord) -> list[dict[str, Any]]:
    run = TrackedRun(store.home, record.run_id)
    if run.lost():
        run.end("KILLED")
    before = run.sent(server.name).complete
    if before:
        return []
    stages = [{**line, "mlflow_run_id": _run_of(server, store, line)} for line in record.stages]
    run.close(server, stages)
    if not run.sent(server.name).complete:
        return []
    replace(record, mlflow_run_id=run.sent(server.name).run_id, stages=stages).save(store.home, as_of_before=True)
    return [_said(record, None, run.sent(server.name).run_id)]


def _run_of(server: MlflowServer, store: Store, line: Mapping[str, Any]) -> str | None:
    own = TrackedStage(store, line["uses"], line["key"]).sent(server.name).run_id
    return own or (server.run_of(line["key"]) if line["path"] else None)


def _said(record: RunRecord, stage: str | None, run: str | None) -> dict[str, Any]:
    print(f"{record.run_id}{f': {stage}' if stage else ''}", file=sys.stderr)
    return {"run_id": record.run_id, "stage": stage, "mlflow_run_id": run}
