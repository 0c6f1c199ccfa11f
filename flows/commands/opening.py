"""`align open`: the page of a run or a stage in MLflow, or of the flow run in Prefect."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from flows.addresses import without_secrets
from flows.links import LOCAL, mlflow_page, mlflow_server, open_in_browser
from flows.records import SHORTEST_KEY, RunRecord, find_record, find_stage, load_records
from flows.servers.state import named_prefect

LOCAL_PREFECT = "http://127.0.0.1:4200"


def open_page(home: Path, what: str, *, prefect: bool) -> int:
    """Print the link, and open it where there is a server and a display; 1 if there is no server, else 0."""
    record, stage = _find(home, what)
    if prefect:
        link, served = _prefect_page(record), named_prefect() is not None
    else:
        link, served = _mlflow_page(what, record, stage), mlflow_server() is not None
    print(link)
    if not served:
        print(_no_server("Prefect" if prefect else "MLflow"), file=sys.stderr)
        return 1
    open_in_browser(link)
    return 0


def _find(home: Path, what: str) -> tuple[RunRecord, Mapping[str, Any] | None]:
    """A run, `RUN:stage`, or the newest run with a stage whose key begins so."""
    if ":" in what:
        return find_stage(home, what)
    if len(what) >= SHORTEST_KEY:
        for record in load_records(home):
            for stage in record.stages:
                if stage["key"].startswith(what):
                    return record, stage
    return find_record(home, what), None


def _mlflow_page(what: str, record: RunRecord, stage: Mapping[str, Any] | None) -> str:
    run = record.mlflow_run_id if stage is None else stage.get("mlflow_run_id")
    if run is None:
        why = f"it is {stage['status']}" if stage is not None and stage["path"] is None else "it was not sent"
        raise UserError(f"{what}: MLflow does not have it ({why}); `align sync` sends what MLflow lacks")
    link = mlflow_page(run, mlflow_server() or LOCAL)
    assert link is not None
    return link


def _prefect_page(record: RunRecord) -> str:
    from prefect.utilities.urls import url_for

    link = url_for("flow-run", record.flow_run_id, default_base_url=LOCAL_PREFECT) if record.flow_run_id else None
    if link is None:
        raise UserError(f"{record.run_id}: is no flow run of Prefect's")
    return link


def _no_server(name: str) -> str:
    if name == "MLflow" and (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        shown = without_secrets(uri)
        return f"MLFLOW_TRACKING_URI is {shown}, which has no pages; `mlflow ui --backend-store-uri {shown}` shows them"
    return f"nothing serves {name} here now: `align up` does, and then the same command opens the page"
