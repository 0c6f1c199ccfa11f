"""How a training went, from the metrics that it left: loss spikes, alarms, early ends. Nothing here knows a method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.jsonl import read_jsonl

LOSSES = ("loss/value_avg", "train/loss")
"""The loss whose spikes are counted, the first that was logged. (A clipped policy loss is near 0 whatever happens.)"""
ALARM = "alarms/"
CUT_SHORT = "policy/stopped_early"
WINDOW, FEWEST = 20, 8
"""A loss is held against so many before it, and judged once there are at least FEWEST."""
SPIKE = 6.0
"""In standard deviations, as the median absolute deviation of a normal distribution tells them."""
MAD_TO_DEVIATION = 1.4826
NOISE = 0.05
"""Of the median: a smaller deviation is taken for that, so that a spike is 30% above the median at least, and a loss
that starts at log 2 on every batch and then begins to move has none."""


@dataclass(frozen=True)
class Stability:
    """What there is to tell of one training."""

    spikes: list[int] = field(default_factory=list)
    """Optimizer steps whose loss is a spike."""
    alarms: dict[str, int] = field(default_factory=dict)
    """How often each alarm rang."""
    cut_short: int = 0
    """Updates that a limit on their KL ended."""
    ended_at: int | None = None
    """The optimizer step at which it ended although more were planned."""
    planned: int | None = None
    """Optimizer steps planned, where known."""

    @classmethod
    def read(cls, metrics: Path, planned: int | None) -> Stability | None:
        """From a stage's `metrics.jsonl`; None if it left none."""
        points = read_jsonl(metrics) if metrics.exists() else []
        if not points:
            return None
        alarms: dict[str, int] = {}
        for name in (name for point in points for name in point["metrics"] if name.startswith(ALARM)):
            alarms[name.removeprefix(ALARM)] = alarms.get(name.removeprefix(ALARM), 0) + 1
        cut_short = sum(point["metrics"].get(CUT_SHORT, 0.0) > 0 for point in points)
        return cls(_loss_spikes(points), alarms, cut_short, _ended_at(points, planned), planned)

    def phrases(self) -> list[str]:
        """What is worth saying, in few words; nothing of a training that went as planned."""
        said = [_counted(len(self.spikes), "spike")] if self.spikes else []
        said += [f"alarm {name} {count}x" for name, count in sorted(self.alarms.items())]
        said += [_counted(self.cut_short, "update") + " cut short"] if self.cut_short else []
        return said + ([f"ended at {self.ended_at} of {self.planned} steps"] if self.ended_at is not None else [])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def spikes(losses: Sequence[float]) -> list[int]:
    """Places of the losses that exceed the median of the WINDOW before by more than SPIKE deviations."""
    found = []
    for place, loss in enumerate(losses):
        before = losses[max(0, place - WINDOW) : place]
        if len(before) < FEWEST:
            continue
        median = statistics.median(before)
        deviation = MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in before)
        if loss > median + SPIKE * max(deviation, NOISE * abs(median)):
            found.append(place)
    return found


def _loss_spikes(points: Sequence[dict[str, Any]]) -> list[int]:
    name = next((name for name in LOSSES if any(name in point["metrics"] for point in points)), None)
    logged = [(point["optimizer_step"], point["metrics"][name]) for point in points if name in point["metrics"]]
    return [logged[place][0] for place in spikes([loss for _, loss in logged])]


def _ended_at(points: Sequence[dict[str, Any]], planned: int | None) -> int | None:
    """The last step logged, if a point is missing after it: points may be several steps apart."""
    steps = sorted({point["optimizer_step"] for point in points if point["optimizer_step"] > 0})
    if planned is None or not steps:
        return None
    apart = max((after - before for before, after in zip([0, *steps], steps, strict=False)), default=1)
    return steps[-1] if planned - steps[-1] >= apart else None
