"""Follows a stage's draft into its MLflow run while it works: metric points and checkpoints.

What was sent is written down in the draft, so that a stage that goes on after a crash sends no point twice.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flows.artifact_links import link_checkpoints
from flows.watch import Watcher

INTERVAL_S = 2.0
BATCH = 100


class Follower(threading.Thread):
    """A thread that never raises: what can't be sent now is tried again, and stays in `metrics.jsonl`."""

    def __init__(self, client: MlflowClient, run: str, draft: Path, watcher: Watcher) -> None:
        super().__init__(name=f"follow-{draft.name}", daemon=True)
        self.client, self.run_id, self.draft, self.watcher = client, run, draft, watcher
        self._stopping = threading.Event()
        self._complained = False
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
                self._remember([name for name, _ in batch])
            link_checkpoints(self.client, self.run_id, self.draft / "work")
        except (MlflowException, OSError) as error:
            if not self._complained:
                self.watcher.line("mlflow", f"points wait on disk: {str(error).splitlines()[0][:200]}")
            self._complained = True

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
