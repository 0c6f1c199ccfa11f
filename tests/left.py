"""What a stage leaves in its folder that must not depend on how often it was killed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.fingerprint import file_digest
from artifacts.jsonl import read_jsonl

UNTIMED = ("timing/", "train/tokens_per_second", "cost/seconds", "cost/peak")


@dataclass(frozen=True)
class Left:
    """Digests by file, points of the metrics, samples, headline figures; without whatever is a time."""

    digests: dict[str, str]
    points: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    figures: dict[str, float]

    def lost(self, wanted: Left) -> int:
        """How many of the points that there should be are missing."""
        return len(_lines(wanted.points) - _lines(self.points))

    def doubled(self, wanted: Left) -> int:
        """How many points there are beyond those that there should be."""
        return len(self.points) - len(_lines(self.points) & _lines(wanted.points))


def left_in(folder: Path) -> Left:
    """Of a draft that has ended, or of a result in the store."""
    return Left(
        digests={
            path.relative_to(folder / "out").as_posix(): file_digest(path)
            for path in sorted((folder / "out").rglob("*"))
            if path.is_file()
        },
        points=[{**line, "time": 0, "metrics": timeless(line["metrics"])} for line in _log(folder, "metrics")],
        samples=[{**line, "time": 0} for line in _log(folder, "samples")],
        figures=timeless(json.loads((folder / "result.json").read_text())["metrics"]),
    )


def steps_in(folder: Path) -> int:
    """Steps (for PPO rollouts) of which there is a point."""
    return len({line["optimizer_step"] for line in _log(folder, "metrics") if line["optimizer_step"] > 0})


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that measure no time and no memory."""
    return {name: value for name, value in metrics.items() if not name.startswith(UNTIMED)}


def _log(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    return read_jsonl(path) if path.exists() else []


def _lines(points: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(point, sort_keys=True) for point in points}
