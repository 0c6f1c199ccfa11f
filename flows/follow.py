"""Follows a stage's draft into its MLflow run while it works: metric points and checkpoints.

What was sent is written down in the draft, so that a stage that goes on after a crash sends no point twice.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flows.artifact_links import link_checkpoints
from flows.watch import Watcher

INTERVAL_S = 2.0
BATCH = 100
ALARM = "alarms/"
TABLES_TAG = "mlflow.loggedArtifacts"


class Follower(threading.Thread):
    """A thread that never raises: what can't be sent now is tried again, and stays in `metrics.jsonl`."""

    def __init__(self, client: MlflowClient, run: str, draft: Path, watcher: Watcher) -> None:
        super().__init__(name=f"follow-{draft.name}", daemon=True)
        self.client, self.run_id, self.draft, self.watcher = client, run, draft, watcher
        self._stopping = threading.Event()
        self._complained = False
        self._samples = 0
        self.sent_file = draft / "sent.txt"
        self.sent = set(self.sent_file.read_text().splitlines()) if self.sent_file.exists() else set()

    def run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            self._send()

    def stop(self) -> None:
        """Send what is left and end."""
        self._stopping.set()
        self.join()
        self._send()

    def _send(self) -> None:
        try:
            for batch in self._unsent():
                self.client.log_batch(self.run_id, metrics=[metric for _, metrics in batch for metric in metrics])
                self._tag_alarms({metric.key for _, metrics in batch for metric in metrics})
                self._remember([name for name, _ in batch])
            link_checkpoints(self.client, self.run_id, self.draft / "work")
            self._send_samples()
        except (MlflowException, OSError) as error:
            if not self._complained:
                self.watcher.line("mlflow", f"points wait on disk: {str(error).splitlines()[0][:200]}")
            self._complained = True

    def _tag_alarms(self, names: set[str]) -> None:
        """An alarm that rang is a tag, by which runs can be searched."""
        for name in sorted(name for name in names if name.startswith(ALARM)):
            self.client.set_tag(self.run_id, f"align.alarm.{name.removeprefix(ALARM)}", "rang")

    def _send_samples(self) -> None:
        """The whole table again whenever it has grown: right after a crash too."""
        path = self.draft / "samples.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        samples = [json.loads(line)["sample"] for line in lines if line.endswith("\n")]
        if len(samples) != self._samples:
            log_table(self.client, self.run_id, samples, "samples.json")
            self._samples = len(samples)

    def _unsent(self) -> list[list[tuple[str, list[Metric]]]]:
        path = self.draft / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        points = [json.loads(line) for line in lines if line.endswith("\n")]
        new = [(name, entities(point)) for point in points if (name := identity(point)) not in self.sent]
        return [new[start : start + BATCH] for start in range(0, len(new), BATCH)]

    def _remember(self, names: list[str]) -> None:
        self.sent.update(names)
        with self.sent_file.open("a") as file:
            file.writelines(name + "\n" for name in names)


def log_table(client: MlflowClient, run: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Rows as a table that MLflow's pages show; in place of an earlier one of that name."""
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
    """The metrics that a chart can draw: finite ones."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
