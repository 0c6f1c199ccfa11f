"""A stage's metric points, samples and checkpoints, as its MLflow run shows them while it works."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from artifacts.jsonl import read_jsonl
from flows.tracking.artifact_files import put_checkpoints
from flows.tracking.sent import Sent
from flows.tracking.system_metrics import SYSTEM

BATCH = 100
ALARM = "alarms/"
TABLES_TAG = "mlflow.loggedArtifacts"
SAMPLES = "samples"


def send_points(client: MlflowClient, run: str, folder: Path, sent: Sent) -> None:
    """All that `folder` has and the server has not; raises MlflowException or OSError if that can't be done now."""
    if sent.has("pending"):  # did they arrive? only the server knows
        sent.add(already_there(client, run))
        sent.unmark("pending")
    for batch in [*_unsent(folder / "metrics.jsonl", sent), *_unsent(folder / SYSTEM, sent)]:
        sent.mark("pending")
        client.log_batch(run, metrics=[metric for _, metrics in batch for metric in metrics])
        _tag_alarms(client, run, {metric.key for _, metrics in batch for metric in metrics})
        sent.add([name for name, _ in batch])
        sent.unmark("pending")
    put_checkpoints(client, run, folder, sent.points(), sent.add)
    _send_samples(client, run, folder / "samples.jsonl", sent)


def _unsent(file: Path, sent: Sent) -> list[list[tuple[str, list[Metric]]]]:
    known = sent.points()
    new = [
        (name, [metric for metric in entities(point) if _on_server(metric) not in known])
        for point in _points(file)
        if (name := identity(point)) not in known
    ]
    return [new[start : start + BATCH] for start in range(0, len(new), BATCH)]


def already_there(client: MlflowClient, run: str) -> list[str]:
    """What `Sent` is to know of the points that a run has, whoever sent them: each metric at each step."""
    names = client.get_run(run).data.metrics
    return [_on_server(metric) for name in names for metric in client.get_metric_history(run, name)]


def _on_server(metric: Metric) -> str:
    return f"{metric.key}@{metric.step}"


def _tag_alarms(client: MlflowClient, run: str, names: set[str]) -> None:
    """An alarm that rang is a tag, by which runs can be searched."""
    for name in sorted(name for name in names if name.startswith(ALARM)):
        client.set_tag(run, f"align.alarm.{name.removeprefix(ALARM)}", "rang")


def _send_samples(client: MlflowClient, run: str, file: Path, sent: Sent) -> None:
    """The whole table again whenever it has grown."""
    samples = [line["sample"] for line in _points(file)]
    if samples and (mark := f"{SAMPLES} {len(samples)}") not in sent.points():
        log_table(client, run, samples, "samples.json")
        sent.add([mark])


def _points(file: Path) -> list[dict[str, Any]]:
    return read_jsonl(file) if file.exists() else []


def log_table(client: MlflowClient, run: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Rows as a table that MLflow's pages show, in place of an earlier one of that name; none makes no table."""
    if not rows:
        return
    columns = list(rows[0])
    client.log_dict(run, {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}, name)
    tables = json.loads(client.get_run(run).data.tags.get(TABLES_TAG, "[]"))
    if (entry := {"path": name, "type": "table"}) not in tables:
        client.set_tag(run, TABLES_TAG, json.dumps([*tables, entry]))


def identity(point: Mapping[str, Any]) -> str:
    """Which point it is: its optimizer step and what it measures."""
    return f"{point['optimizer_step']} {','.join(sorted(point['metrics']))}"


def entities(point: Mapping[str, Any]) -> list[Metric]:
    """A point as MLflow's metrics."""
    at = int(point["time"] * 1000)
    return [Metric(name, value, at, point["step"]) for name, value in numbers(point["metrics"]).items()]


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a chart can draw: finite ones, under names that MLflow takes."""
    return {accepted(name): float(value) for name, value in metrics.items() if math.isfinite(value)}


def accepted(name: str) -> str:
    """A name of a metric or parameter as MLflow takes it: it refuses the whole batch for one odd character."""
    return re.sub(r"[^\w\-. :/]", "_", name).strip("/. ")[:250]
