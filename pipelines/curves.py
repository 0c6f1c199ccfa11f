"""A stage's training curves as one picture, from its `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.jsonl import read_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("objective/scores", "score"),
    ("objective/kl", "KL to the reference (nats a completion)"),
    ("completions/mean_length", "completion length (tokens)"),
    ("policy/entropy", "entropy (nats a token)"),
    ("val/explained_variance", "value model: explained variance"),
    ("policy/clipfrac_avg", "clipped share of tokens"),
    ("train/loss", "training loss"),
    ("validation/loss", "held-out loss"),
    ("rewards/accuracies", "chosen ranked above rejected"),
    ("rewards/margins", "margin of chosen over rejected"),
    ("train/token_accuracy", "token accuracy"),
    ("train/grad_norm", "gradient norm"),
)
"""Metrics worth a panel, the most telling first."""
SHOWN = 6
SMOOTHED_FROM = 20
"""With so many points a running mean is drawn over them."""


def curves(metrics: Path, title: str = "") -> Figure | None:
    """Up to six metrics against samples seen; None where there are no two points of any."""
    points = read_jsonl(metrics) if metrics.exists() else []
    series = {name: _series(points, name) for name, _ in PANELS}
    shown = [(name, label) for name, label in PANELS if len(series[name][0]) > 1][:SHOWN]
    if not shown:
        return None
    from matplotlib.figure import Figure

    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (name, label) in zip(panels, shown, strict=False):
        _draw(panel, *series[name], label)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    figure.supxlabel("samples seen", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _series(points: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(point["step"], point["metrics"][name]) for point in points if name in point["metrics"]]
    return [step for step, _ in found], [value for _, value in found]


def _draw(panel: Any, steps: list[int], values: list[float], label: str) -> None:
    many = len(values) >= SMOOTHED_FROM
    panel.plot(steps, values, color="C0", linewidth=1, alpha=0.35 if many else 1.0, marker="" if many else ".")
    if many:
        panel.plot(steps, _running_mean(values, max(3, len(values) // 10)), color="C0", linewidth=2)
    panel.set_title(label, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _running_mean(values: list[float], width: int) -> list[float]:
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]
