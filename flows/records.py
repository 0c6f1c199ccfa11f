"""What is left of a run: `$ALIGN_HOME/runs/<run_id>.json`, the same object that `align run --json` prints. Schema 1.

It is there from the start and rewritten after each stage, so that a run that was killed has left one too.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import UserError
from artifacts.syncing import write_whole
from flows.execute import StageResult, missing
from pipelines.plan import Plan
from pipelines.problems import did_you_mean

if TYPE_CHECKING:
    from flows.tracking import Tracker


@dataclass(frozen=True)
class RunRecord:
    """A run and its stages, in the order in which they ran."""

    recipe: str
    run_id: str
    flow_run_id: str | None
    mlflow_run_id: str | None
    stages: list[dict[str, Any]]

    @classmethod
    def of(
        cls, plan: Plan, run_id: str, flow_run_id: str | None, tracker: Tracker, results: Mapping[str, StageResult]
    ) -> RunRecord:
        lines = [results.get(planned.label) or missing(planned, "planned", None) for planned in plan.stages]
        stages = [{**line.as_dict(), "mlflow_run_id": tracker.run_of(line.uses, line.key)} for line in lines]
        return cls(str(plan.recipe.path), run_id, flow_run_id, tracker.mlflow_run_id, stages)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def file(self, home: Path) -> Path:
        """Where it is written."""
        return home / "runs" / f"{self.run_id}.json"

    def save(self, home: Path, *, as_of_before: bool = False) -> None:
        """Write it under `home`; `as_of_before` keeps its time, by which runs are ordered."""
        file = self.file(home)
        stat = file.stat() if as_of_before else None
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(self.as_dict(), indent=1))
        if stat is not None:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    @property
    def reports(self) -> dict[str, Path]:
        """The folders of the evaluations in this run, by stage name."""
        return {
            stage["name"]: Path(stage["path"])
            for stage in self.stages
            if stage["path"] and (Path(stage["path"]) / "completions.jsonl").exists()
        }


def load_records(home: Path) -> list[RunRecord]:
    """Every run under `home`, the newest first."""
    paths = sorted((home / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunRecord(**json.loads(path.read_text())) for path in paths]


def run_id_for(home: Path, recipe: str, flow_run_id: str | None) -> str:
    """The id of the run that a flow run is: a new one, or its own if it was begun before, and retried or resumed."""
    own = (record for record in load_records(home) if flow_run_id is not None and record.flow_run_id == flow_run_id)
    if (found := next(own, None)) is not None and found.run_id.startswith(f"{recipe}-"):
        return found.run_id
    return f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def find_record(home: Path, run_id: str) -> RunRecord:
    """The run with this id, or with the only id that starts so; `last` is the newest. Raises UserError."""
    records = load_records(home)
    if run_id == "last" and records:
        return records[0]
    matching = [record for record in records if record.run_id.startswith(run_id)]
    exact = [record for record in matching if record.run_id == run_id]
    if len(exact or matching) == 1:
        return (exact or matching)[0]
    if matching:
        raise UserError(f"{run_id!r} could be any of {', '.join(record.run_id for record in matching[:5])}")
    hint = did_you_mean(run_id, [record.run_id for record in records])
    raise UserError(f"no run is named {run_id!r}{hint}; `align runs` lists them")
