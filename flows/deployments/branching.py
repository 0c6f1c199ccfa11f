"""An earlier run to branch from: its stages, as its recipe had them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from flows.records import find_record, load_records
from flows.tracking.earlier_run import FLOW_RUN_TAG, FOLDER_TAG, RECIPE_TAG, EarlierRun, earlier_run
from flows.tracking.tracked_run import TrackedRun
from pipelines.allowed import SHIPPED
from tasks.registry import stage_class
from tasks.sources import first_there

RECIPE = "recipe.json"


def earlier_stages(home: Path, run_id: str) -> dict[str, dict[str, Any]]:
    """The stages of a run by their names, with files where that run found them; raises UserError if there is none.

    It may be named by its flow run in Prefect too, which is what the address of a page there has. A run of another
    machine is found in MLflow, and its files where they lie here too.
    """
    flow_runs = {record.flow_run_id: record for record in load_records(home)}
    try:
        record = flow_runs.get(run_id) or find_record(home, run_id)
    except UserError as error:
        if (found := earlier_run(home, ("align.run_id", FLOW_RUN_TAG), run_id, RECIPE)) is None:
            raise error from None
        return _with_files(found.content["stages"], lambda source: _here(source, found))
    kept = TrackedRun(home, record.run_id).files / RECIPE
    if not kept.exists():
        raise UserError(f"{record.run_id}: its recipe is no longer in {kept.parent}; branch from a later run")
    folder = Path(record.recipe).resolve().parent
    return _with_files(json.loads(kept.read_text())["stages"], lambda source: [folder / source])


def _with_files(
    stages: Mapping[str, Mapping[str, Any]], places: Callable[[str], list[Path]]
) -> dict[str, dict[str, Any]]:
    """With whole paths for what stands relative to the recipe's folder."""
    return {label: {name: _located(stage, name, places) for name in stage} for label, stage in stages.items()}


def _located(stage: Mapping[str, Any], name: str, places: Callable[[str], list[Path]]) -> Any:
    value = stage[name]
    if name not in stage_class(stage["uses"]).outside or not isinstance(value, str):
        return value
    return str(first_there(places(value)) or value)


def _here(source: str, run: EarlierRun) -> list[Path]:
    """Where a file of another machine's run may be on this one: where it was there, or among what ships."""
    recipe, resolved = Path(run.tags.get(RECIPE_TAG, "")), run.tags.get(FOLDER_TAG, "")
    folders = [recipe.parent]
    if recipe.parent.name == SHIPPED.name and (SHIPPED / recipe.name).exists():
        folders.append(SHIPPED)
    below = Path(source)
    if below.is_absolute():  # as a run has it that was triggered, whose recipe may have lain behind a link
        if not resolved or not below.is_relative_to(resolved):
            return [below]
        below = below.relative_to(resolved)
    return [folder / below for folder in folders]
