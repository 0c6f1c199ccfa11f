"""An earlier run to branch from: its stages, as its recipe had them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from flows.addresses import reason
from flows.deployments.deployed import ROOT
from flows.home import aside
from flows.records import find_record, load_records
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.tracked_run import TrackedRun
from tasks.registry import stage_class

RECIPE = "recipe.json"
NAME = re.compile(r"[\w.@+-]+")
"""What a run or a flow run can be called."""


def earlier_stages(home: Path, run_id: str) -> dict[str, dict[str, Any]]:
    """The stages of a run by their names, with files where that run found them; raises UserError if there is none.

    It may be named by its flow run in Prefect too, which is what the address of a page there has. A run of another
    machine is found in MLflow, and its files where they lie here too.
    """
    flow_runs = {record.flow_run_id: record for record in load_records(home)}
    try:
        record = flow_runs.get(run_id) or find_record(home, run_id)
    except UserError as error:
        if (kept := _elsewhere(home, run_id)) is None:
            raise error from None
        return {label: _located(stage, ROOT / "pipelines") for label, stage in kept["stages"].items()}
    kept_here = TrackedRun(home, record.run_id).files / RECIPE
    if not kept_here.exists():
        raise UserError(f"{record.run_id}: its recipe is no longer in {kept_here.parent}; branch from a later run")
    folder = Path(record.recipe).resolve().parent
    stages = json.loads(kept_here.read_text())["stages"]
    return {label: _located(stage, folder) for label, stage in stages.items()}


def _elsewhere(home: Path, run_id: str) -> dict[str, Any] | None:
    """The recipe of another machine's run, as MLflow has it; None if there is none by this id."""
    server = MlflowServer.reach(home)
    if server.is_own or not NAME.fullmatch(run_id):
        return None
    try:
        experiments = [each.experiment_id for each in server.client.search_experiments()]
        for tag in ("align.run_id", "prefect.flow_run_id"):
            wanted = f"tags.`{tag}` = '{run_id}' and tags.`align.kind` = 'pipeline'"
            for run in server.client.search_runs(experiments, wanted, max_results=1):
                with aside(home) as part:
                    kept = server.client.download_artifacts(run.info.run_id, RECIPE, str(part))
                    return dict(json.loads(Path(kept).read_text()))
    except Exception as error:  # an artifact store raises what it likes
        raise UserError(f"{run_id}: its recipe can't be had from MLflow at {server.shown}: {reason(error)}") from error
    return None


def _located(stage: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """With whole paths for what stands relative to the recipe's folder."""
    outside = stage_class(stage["uses"]).outside
    return {
        name: str(folder / value) if name in outside and isinstance(value, str) and (folder / value).exists() else value
        for name, value in stage.items()
    }
