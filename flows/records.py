"""What is left of a run: `$ALIGN_HOME/runs/<run_id>.json`. Schema 1: fields are only ever added.

It is there from the start and rewritten after each stage, so that a run that was killed has left one too. `--json` adds
what can be told of it only later, such as whether it still goes on.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifacts.errors import UserError
from artifacts.syncing import write_whole
from flows.running.execute import StageResult, missing
from flows.running.run_folder import RunFolder
from pipelines.plan import Plan, Planned
from pipelines.problems import did_you_mean

if TYPE_CHECKING:
    from flows.tracking.tracker import Tracker

RunStatus = Literal["running", "finished", "failed", "killed"]
"""As MLflow has it; `killed` is interrupted too."""
SHORTEST_KEY = 6
"""Fewer letters of a key are not taken for one."""


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
        stages = [
            {
                **line.as_dict(), "mlflow_run_id": tracker.run_of(line.uses, line.key),
                "inputs": _inputs(planned, plan),
            }
            for line, planned in zip(lines, plan.stages, strict=True)
        ]  # fmt: skip
        return cls(str(plan.recipe.path), run_id, flow_run_id, tracker.mlflow_run_id, stages)

    @classmethod
    def read(cls, file: Path) -> RunRecord:
        return cls(**json.loads(file.read_text()))

    def as_dict(self) -> dict[str, Any]:
        """The fields that are written down."""
        return asdict(self)

    def described(self, home: Path) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            **self.as_dict(), "status": self.status(home), "started": self.started(home).isoformat(timespec="seconds"),
            "seconds": self.seconds, "tokens": self.tokens,
        }  # fmt: skip

    def status(self, home: Path) -> RunStatus:
        """How it is now: by its folder if it has one, else by its stages."""
        run = RunFolder(home, self.run_id)
        if (facts := run.facts) is not None:
            found: dict[str, RunStatus] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
            return found.get(facts["status"]) or ("running" if run.live() else "killed")
        statuses = {stage["status"] for stage in self.stages}
        return "failed" if "failed" in statuses else "killed" if "planned" in statuses else "finished"

    def started(self, home: Path) -> datetime:
        """When it began; of a run that did not write that down, when it last said anything."""
        told = (RunFolder(home, self.run_id).facts or {}).get("started")
        return datetime.fromisoformat(told) if told else datetime.fromtimestamp(self.file(home).stat().st_mtime, UTC)

    @property
    def seconds(self) -> float:
        """What all stages took that were not cached, one after another."""
        return float(sum(stage["seconds"] for stage in self.stages))

    @property
    def tokens(self) -> int:
        """On which the stages trained that were not cached."""
        made = [stage["metrics"] for stage in self.stages if stage["status"] in ("ran", "resumed")]
        return int(sum(metrics.get("cost/tokens", 0) for metrics in made))

    def file(self, home: Path) -> Path:
        """Where it is written."""
        return home / "runs" / f"{self.run_id}.json"

    def save(self, home: Path, *, as_of_before: bool = False) -> None:
        """Write it under `home`; `as_of_before` keeps its time, by which runs are ordered."""
        file = self.file(home)
        at = file.stat().st_mtime_ns if as_of_before else self._after_all(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(self.as_dict(), indent=1))
        if at is not None:
            os.utime(file, ns=(at, at))

    def _after_all(self, file: Path) -> int | None:
        """A time after every other record's, where the clock, set back meanwhile, does not give one."""
        others = [path.stat().st_mtime_ns for path in file.parent.glob("*.json") if path != file]
        newest = max(others, default=0)
        return newest + 1 if newest > time.time_ns() else None

    @property
    def reports(self) -> dict[str, Path]:
        """The folders of the evaluations in this run, by stage name."""
        return {
            stage["name"]: Path(stage["path"])
            for stage in self.stages
            if stage["path"] and (Path(stage["path"]) / "completions.jsonl").exists()
        }


def _inputs(planned: Planned, plan: Plan) -> dict[str, str]:
    """The stages that a stage takes its inputs from, by field, in the order of its fields."""
    keys = {plan[label].key: label for label in reversed(planned.needs)}
    return {field: keys[key] for field, key in planned.payload["inputs"].items()}


def load_records(home: Path) -> list[RunRecord]:
    """Every run under `home`, the newest first."""
    paths = sorted((home / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunRecord.read(path) for path in paths]


def run_id_for(home: Path, recipe: str, flow_run_id: str | None, elsewhere: str | None = None) -> str:
    """The id of the run that a flow run is: a new one, or its own if it was begun before, and retried or resumed; here,
    or as `elsewhere`, on another machine."""
    own = (record.run_id for record in load_records(home) if flow_run_id and record.flow_run_id == flow_run_id)
    if (found := next(own, elsewhere)) is not None and found.startswith(f"{recipe}-"):
        return found
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


def stage_of(record: RunRecord, label: str) -> dict[str, Any]:
    """A run's stage by its name; raises UserError."""
    stages = {stage["name"]: stage for stage in record.stages}
    if label not in stages:
        raise UserError(
            f"{record.run_id} has no stage {label!r}{did_you_mean(label, stages)}; its stages: {', '.join(stages)}"
        )
    return stages[label]


def find_stage(home: Path, name: str) -> tuple[RunRecord, dict[str, Any]]:
    """`RUN:stage`; raises UserError."""
    run, _, label = name.partition(":")
    record = find_record(home, run)
    return record, stage_of(record, label)
