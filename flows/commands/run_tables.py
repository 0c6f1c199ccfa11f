"""Runs as text for a terminal: the list of all, and one with its stages, lineage and what to do next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artifacts.garbage import worked_on
from artifacts.store import Store
from flows.commands.lineage import lineage
from flows.links import mlflow_page
from flows.records import RunRecord
from flows.tables import DAY_S, WIDTH, duration, text_table

NARROWEST = 80
COUNTS_FROM = 100
"""From so many columns on, the list of runs has room for how many stages ran, were cached, failed."""


def runs_table(records: Sequence[RunRecord], home: Path) -> str:
    """One line a run."""
    if not records:
        return "no runs yet; start with: align run pipelines/tiny.yaml"
    width = _width()
    rows = [
        [
            record.run_id, record.status(home), _age(record.started(home)), _stages(record, width),
            duration(record.seconds), f"{record.tokens:,}" if record.tokens else "",
        ]
        for record in records
    ]  # fmt: skip
    return text_table(["run", "status", "started", "stages", "time", "tokens"], rows, ["time", "tokens"], width)


def _width() -> int:
    """Of the terminal, within reason; as wide as all else where there is none."""
    if not sys.stdout.isatty():
        return WIDTH
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDTH)


def _age(began: datetime) -> str:
    seconds = (datetime.now(UTC) - began).total_seconds()
    for unit, length in (("d", DAY_S), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _stages(record: RunRecord, width: int) -> str:
    if width < COUNTS_FROM:
        return f"{sum(1 for stage in record.stages if stage['path'])}/{len(record.stages)}"
    statuses = [stage["status"] for stage in record.stages]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def run_text(record: RunRecord, home: Path) -> str:
    """One run in full: stages, policies compared, lineage, folders, and what to do next."""
    paths = [f"{stage['name']}: {stage['path']}" for stage in record.stages if stage["path"]]
    drawn = lineage(_as_of_now(record, home))
    said = f"{record.run_id}: {record.status(home)}, started {_age(record.started(home))}"
    parts = [said, _findings(record, home), drawn, "\n".join(paths), next_steps(record, home)]
    return "\n\n".join(part for part in parts if part)


def run_end(record: RunRecord, home: Path) -> str:
    """What a run ends with: stages, policies compared, what to do next, and where complete models are."""
    merged = [stage for stage in record.stages if stage["uses"] == "merge" and stage["path"]]
    models = [f"{stage['name']}: {stage['path']}" for stage in merged]
    again = f"run {record.run_id}: align show {record.run_id}"
    return "\n".join([_findings(record, home), "", again, next_steps(record, home), *models])


def _findings(record: RunRecord, home: Path) -> str:
    from flows.commands.comparison_text import short
    from flows.commands.summary import comparisons_of, headline

    rows = [
        [stage["name"], stage["status"], f"{stage['seconds']:.0f} s", headline(stage), stage["key"][:12]]
        for stage in _as_of_now(record, home)
    ]
    stages = text_table(["stage", "status", "time", "figure", "key"], rows, ["time"])
    comparisons = comparisons_of(record)
    return f"{stages}\n\n{short(comparisons)}" if comparisons.each else stages


def _as_of_now(record: RunRecord, home: Path) -> list[Mapping[str, Any]]:
    """The stages; one that the run is at now is `running`."""
    if record.status(home) != "running":
        return list(record.stages)
    store = Store(home)

    def now(stage: Mapping[str, Any]) -> Mapping[str, Any]:
        draft = store.draft(stage["uses"], stage["key"])
        begun = stage["status"] == "planned" and draft.exists() and worked_on(store, draft.name)
        return {**stage, "status": "running"} if begun else stage

    return [now(stage) for stage in record.stages]


def next_steps(record: RunRecord, home: Path) -> str:
    """What can be done with a run next, one command a line."""
    run = record.run_id
    failed = [stage["name"] for stage in record.stages if stage["status"] == "failed"]
    steps = [f"what {name} said: align logs {run} {name}" for name in failed[:3]]
    if record.status(home) == "running":
        steps.append(f"what it says: align logs {run} -f")
    elif record.status(home) == "killed":
        steps.append(f"what it said: align logs {run}; run the same command again to go on")
    if record.reports:
        steps.append(f"costs, needs, curves and completions: align compare {run} --html FILE")
    steps.append(f"MLflow: {_in_mlflow(record)}")
    return "\n".join(steps)


def _in_mlflow(record: RunRecord) -> str:
    """Where the run is shown, or what to do so that it is."""
    if record.mlflow_run_id is None:
        return "`align sync` sends it"
    page = mlflow_page(record.mlflow_run_id)
    return f"{page} (align open {record.run_id})" if page else "`align up` shows it in a browser"
