"""`align sync`: what MLflow lacks, sent; and runs whose process is gone, no longer shown as running."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from artifacts.errors import StageError
from artifacts.garbage import worked_on
from artifacts.store import Store
from flows.addresses import reason
from flows.home import align_home
from flows.records import RunRecord, find_record, load_records
from flows.running.lost import tell_of_all
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.tracked_run import TrackedRun
from flows.tracking.tracked_stage import TrackedStage

Sending = list[dict[str, Any]]


def sync(*, as_json: bool) -> int:
    """Send all that is under `$ALIGN_HOME` and not on the server; can be repeated, and killed."""
    store = Store(align_home())
    server = MlflowServer.reach(store.home)
    sent: Sending = []
    failures: list[str] = []
    tell_of_all(store.home, partial(print, file=sys.stderr))
    for record in reversed(load_records(store.home)):
        try:
            sent += send_run(server, store, record)
        except Exception as error:  # an artifact store raises what it likes; the others may fare better
            failures.append(f"{record.run_id}: {reason(error)}")
    for line in sent:
        print(f"{line['run_id']}{': ' + line['stage'] if line['stage'] else ''}", file=sys.stderr)
    if as_json:
        print(json.dumps({"server": server.shown, "sent": sent}))
    elif not failures:
        print(f"{server.shown}: {len(sent)} runs sent" if sent else f"{server.shown} has everything")
    if failures:
        raise StageError("\n".join([*failures, f"not all could be sent to {server.shown}; `align sync` tries again"]))
    return 0


def send_run(server: MlflowServer, store: Store, record: RunRecord) -> Sending:
    """A run and the stages that it began, as far as they have ended and the server lacks them.

    One that is going on sends its own.
    """
    run = TrackedRun(store.home, record.run_id)
    if run.live():
        return []
    found: Sending = []
    for line in record.stages:
        stage = TrackedStage(store, line["uses"], line["key"])
        facts = stage.facts
        if facts is None or facts["run_id"] != record.run_id or stage.sent(server.name).has("complete"):
            continue
        done = stage.result.exists()
        if not done and worked_on(store, stage.result.name):
            continue  # by a later run
        if stage.send(server, run.open(server), "FINISHED" if done else "KILLED") and done:
            found.append(_line(record, line["name"], stage.sent(server.name).run_id))
    if not run.sent(server.name).has("complete"):
        record = find_record(store.home, record.run_id)  # as its process left it
        stages = [{**line, "mlflow_run_id": _run_of(server, store, line)} for line in record.stages]
        run.close(server, stages)
        own = run.sent(server.name)
        if own.has("complete"):
            replace(record, mlflow_run_id=own.run_id, stages=stages).save(store.home, as_of_before=True)
            found.append(_line(record, None, own.run_id))
    return found


def _run_of(server: MlflowServer, store: Store, line: Mapping[str, Any]) -> str | None:
    own = TrackedStage(store, line["uses"], line["key"]).sent(server.name).run_id
    return own or (server.run_of(line["key"]) if line["path"] else None)


def _line(record: RunRecord, stage: str | None, run: str | None) -> dict[str, Any]:
    return {"run_id": record.run_id, "stage": stage, "mlflow_run_id": run}
