"""The frontier: what each policy is worth against how far it went from the reference.

A method that reaches more at the same KL is better; one that reaches more further away may only have gone further.
(Gao et al. 2023, arXiv:2210.10760, draw a reward against KL to show where going further stops to pay.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.comparison.charts import WORTH, label
from pipelines.comparison.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KL = "eval/kl_to_reference"
KL_AXIS = (
    "KL to the reference (nats a completion)\n"
    "the log-ratio on the completions written; a KL where they were sampled at temperature 1"
)
PLACES = tuple(
    (side * 8, up, "left" if side > 0 else "right") for up in (5, -13, 17, -25, 29, -37, 41, -49) for side in (1, -1)
)
"""Where a label may stand: points to the right and up of its own, and which side of it is there."""


class Point(NamedTuple):
    """A policy's KL, in nats a completion, and its worth with a 95% interval."""

    name: str
    method: int
    kl: float
    worth: float
    low: float
    high: float


def points(comparison: Comparison, metric: str) -> list[Point]:
    """Those of the policies whose KL was measured against the same model (but for seeds), the one that most name; it
    itself is at 0."""
    origin = comparison.without_seeds
    named = Counter(origin(one.reference) for one in comparison.policies if one.reference and KL in one.metrics)
    if not named:
        return []
    reference = named.most_common(1)[0][0]
    found = []
    for number, method in enumerate(comparison.methods):
        for policy in method.runs:
            is_it = origin(policy.policy) == reference
            kl = 0.0 if is_it else policy.metrics.get(KL)
            its = is_it or (policy.reference is not None and origin(policy.reference) == reference)
            if its and kl is not None and metric in policy.metrics:
                found.append(Point(policy.name, number, kl, *policy.interval(metric)))
    return found


def frontier(comparison: Comparison) -> Figure | None:
    """A panel for each kind of worth that was measured; None where no two policies can be drawn."""
    panels = [(name, drawn) for metric, name in WORTH if len(drawn := points(comparison, metric)) > 1]
    if not panels:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(panels), 4.4), layout="constrained")
    for axis, (name, drawn) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axis, drawn, name)
    figure.supxlabel(KL_AXIS, fontsize=9)
    return figure


def _draw(axis: Any, drawn: Sequence[Point], name: str) -> None:
    for point in drawn:
        error = [[point.worth - point.low], [point.high - point.worth]]
        axis.errorbar([point.kl], [point.worth], yerr=error, fmt="o", color=f"C{point.method % 10}", capsize=3,
                      elinewidth=1, markersize=6)  # fmt: skip
    axis.margins(x=0.14, y=0.08)
    axis.set_title(f"{name}, 95% interval", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _label(axis, drawn)


def _label(axis: Any, drawn: Sequence[Point]) -> None:
    """Each name at the first place where it covers neither a point nor another name; else where it covers least."""
    figure = axis.figure
    figure.draw_without_rendering()
    at = [axis.transData.transform((point.kl, point.worth)) for point in drawn]
    ends = [axis.transData.transform([(one.kl, one.low), (one.kl, one.high)]) for one in drawn]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at] + [(x - 3, low, x + 3, top) for (x, low), (_, top) in ends]
    unit = figure.dpi / 72
    for point, (x, y) in zip(drawn, at, strict=True):
        boxes = [_box(x, y, right * unit, up * unit, side, 5.2 * unit * len(label(point.name)), 9 * unit)
                 for right, up, side in PLACES]  # fmt: skip
        best = min(range(len(PLACES)), key=lambda i: sum(_overlap(boxes[i], other) for other in taken))
        right, up, side = PLACES[best]
        taken.append(boxes[best])
        axis.annotate(label(point.name), (point.kl, point.worth), (right, up), textcoords="offset points", ha=side,
                      fontsize=8.5, color=f"C{point.method % 10}")  # fmt: skip


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


def _box(x: float, y: float, right: float, up: float, side: str, width: float, height: float) -> Box:
    left = x + right - {"left": 0.0, "center": width / 2, "right": width}[side]
    return left, y + up, left + width, y + up + height


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
