"""An earlier run to branch from: its stages, as its recipe had them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from flows.records import find_record, load_records
from flows.tracking.tracked_run import TrackedRun
from tasks.registry import stage_class


def earlier_stages(home: Path, run_id: str) -> dict[str, dict[str, Any]]:
    """The stages of a run by their names, with files where that run found them; raises UserError if there is none.

    It may be named by its flow run in Prefect too, which is what the address of a page there has.
    """
    flow_runs = {record.flow_run_id: record for record in load_records(home)}
    record = flow_runs.get(run_id) or find_record(home, run_id)
    kept = TrackedRun(home, record.run_id).files / "recipe.json"
    if not kept.exists():
        raise UserError(f"{record.run_id}: its recipe is no longer in {kept.parent}; branch from a later run")
    folder = Path(record.recipe).resolve().parent
    stages = json.loads(kept.read_text())["stages"]
    return {label: _located(stage, folder) for label, stage in stages.items()}


def _located(stage: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """With whole paths for what stands relative to the recipe's folder."""
    outside = stage_class(stage["uses"]).outside
    return {
        name: str(folder / value) if name in outside and isinstance(value, str) and (folder / value).exists() else value
        for name, value in stage.items()
    }
