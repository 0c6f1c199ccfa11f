"""What a finished stage adds to its run in MLflow: figures, output, manifest, history, tables and pictures of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from artifacts.jsonl import read_jsonl
from artifacts.manifest import Manifest
from flows.tracking.artifact_files import STAGE_FILES, put_files
from flows.tracking.mlflow_server import DIGEST_TAG
from flows.tracking.points import log_table, numbers
from pipelines.curves import curves

TABLE_ROWS = 400


def send_result(client: MlflowClient, run: str, folder: Path) -> None:
    """Headline metrics, output, manifest and metric history.

    A figure that has no curve stands at step 0, since MLflow draws bars of those, and a line of what has a later step.
    """
    manifest = Manifest.read(folder)
    step, last = last_point(folder / "metrics.jsonl")
    made = int((folder / "manifest.json").stat().st_mtime * 1000)
    new = {name: value for name, value in numbers(manifest.metrics).items() if last.get(name) != value}
    client.log_batch(
        run,
        metrics=[Metric(name, value, made, step if name in last else 0) for name, value in new.items()],
        tags=[RunTag(DIGEST_TAG, manifest.digest), RunTag("align.path", str(folder / "out"))],
    )
    put_files(client, run, folder / "out", "output")
    for name in STAGE_FILES:
        if (folder / name).exists():
            put_files(client, run, folder / name, "stage")
    if (figure := curves(folder / "metrics.jsonl")) is not None:
        client.log_figure(run, figure, "curves.png")
    completions = folder / "out" / "completions.jsonl"
    if completions.exists():
        rows = read_jsonl(completions)[:TABLE_ROWS]
        shown = [name for name in ("prompt", "completion", "passed", "score", "truncated") if name in rows[0]]
        log_table(client, run, [{name: row.get(name) for name in shown} for row in rows], "completions.json")
        log_table(client, run, _figures(json.loads((folder / "out" / "report.json").read_text())), "evaluation.json")


def _figures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure of an evaluation with its interval, then one for each kind of check."""
    metrics = {name.removeprefix("eval/"): value for name, value in report["metrics"].items()}
    rows: list[dict[str, Any]] = [
        {"figure": name, "value": value, "low": metrics.get(f"{name}_low"), "high": metrics.get(f"{name}_high"),
         "prompts": metrics.get("prompts")}
        for name, value in metrics.items()
        if name != "prompts" and name.removesuffix("_low").removesuffix("_high") == name
    ]  # fmt: skip
    return rows + [
        {"figure": f"check_rate, {kind}", "value": each["rate"], "low": None, "high": None, "prompts": each["rows"]}
        for kind, each in report["by_kind"].items()
    ]


def last_point(metrics: Path) -> tuple[int, dict[str, float]]:
    """The last step, so that headline values count as the latest, and what each metric was when it was last logged."""
    points = read_jsonl(metrics) if metrics.exists() else []
    last: dict[str, float] = {}
    for point in points:
        last |= point["metrics"]
    return (int(points[-1]["step"]) if points else 0), last
