"""Check rate or score of every policy as bars, and the check rate by kind of constraint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.comparison.policies import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def chart(policies: Sequence[Compared]) -> Figure | None:
    """Each policy's judged outcome with its interval, and beside it the check rate by kind; None without a figure."""
    metric = next((name for name in ("eval/check_rate", "eval/score_mean") if name in policies[-1].metrics), None)
    if metric is None:
        return None
    from matplotlib.figure import Figure

    shown = [policy for policy in policies if metric in policy.metrics]
    kinds = sorted({kind for policy in shown for kind in policy.by_kind})
    figure = Figure(figsize=(4 + (7 if kinds else 0), 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if kinds else 1, squeeze=False, width_ratios=[1, 2.4] if kinds else [1])[0]
    _overall(axes[0], shown, metric)
    if kinds:
        _kinds(axes[1], shown, kinds)
    return figure


def _overall(axis: Any, shown: Sequence[Compared], metric: str) -> None:
    values = [policy.metrics[metric] for policy in shown]
    errors = [
        [policy.metrics[metric] - policy.metrics.get(f"{metric}_low", policy.metrics[metric]) for policy in shown],
        [policy.metrics.get(f"{metric}_high", policy.metrics[metric]) - policy.metrics[metric] for policy in shown],
    ]
    names = [policy.name for policy in shown]
    axis.bar(names, values, yerr=errors, capsize=5, color=[f"C{i}" for i in range(len(shown))])
    for position, value in enumerate(values):
        axis.annotate(
            f"{value:.0%}" if metric.endswith("rate") else f"{value:.2f}", (position, 0), (0, 4),
            textcoords="offset points", ha="center", color="white", weight="bold",
        )  # fmt: skip
    axis.set_title(f"held-out {metric.removeprefix('eval/').replace('_', ' ')}, 95% interval", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _kinds(axis: Any, shown: Sequence[Compared], kinds: Sequence[str]) -> None:
    width = 0.8 / len(shown)
    for number, policy in enumerate(shown):
        rates = [policy.by_kind.get(kind, {}).get("rate", 0.0) for kind in kinds]
        places = [place + (number - (len(shown) - 1) / 2) * width for place in range(len(kinds))]
        axis.bar(places, rates, width, label=policy.name, color=f"C{number}")
    axis.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=8)
    axis.set_ylim(0, 1.14)  # room for the legend above full bars
    axis.set_title("by kind of constraint", fontsize=10)
    axis.legend(frameon=False, fontsize=8, ncols=len(shown), loc="upper left", bbox_to_anchor=(0, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
