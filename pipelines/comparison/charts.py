"""Check rate or score of every policy with its interval, and beside it the check rate by kind of constraint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.comparison.policies import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORTH = (("eval/check_rate", "check rate"), ("eval/score_mean", "score"))
"""What a policy is worth, the most telling first."""
LONGEST = 28
"""Characters of a name in a picture."""
DARK = 0.55
"""A share above this is written in white on its colour."""


def chart(policies: Sequence[Compared]) -> Figure | None:
    """A line for each policy, the first on top; None where none has a figure."""
    found = next(((metric, name) for metric, name in WORTH if any(metric in one.metrics for one in policies)), None)
    if found is None:
        return None
    from matplotlib.figure import Figure

    metric, name = found
    shown = [policy for policy in policies if metric in policy.metrics]
    kinds = sorted({kind for policy in shown for kind in policy.by_kind})
    width = 4.5 + (1.0 + 0.62 * len(kinds) if kinds else 0)
    figure = Figure(figsize=(width, 1.5 + 0.34 * len(shown)), layout="constrained")
    ratios = [4.0, 0.62 * len(kinds)] if kinds else [1]
    axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios, sharey=True)[0]
    _overall(axes[0], shown, metric, name)
    if kinds:
        _by_kind(axes[1], shown, kinds)
    return figure


def label(name: str) -> str:
    """A name as a picture can bear it: not too long, and with no mathematics in it."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return short.replace("$", r"\$").replace("\n", " ")


def _overall(axis: Any, shown: Sequence[Compared], metric: str, name: str) -> None:
    for line, policy in enumerate(shown):
        value, low, high = policy.interval(metric)
        axis.errorbar([value], [line], xerr=[[value - low], [high - value]], fmt="o", color=f"C{line % 10}", capsize=3)
        said = f"{value:.0%}" if metric.endswith("rate") else f"{value:.2f}"
        axis.annotate(said, (value, line), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(shown)), [label(policy.name) for policy in shown], fontsize=9)
    axis.set_ylim(len(shown) - 0.4, -0.8)
    axis.set_title(f"{name}, 95% interval", fontsize=10)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _by_kind(axis: Any, shown: Sequence[Compared], kinds: Sequence[str]) -> None:
    """Shares as colours, with their numbers."""
    rates = [[policy.by_kind.get(kind, {}).get("rate", float("nan")) for kind in kinds] for policy in shown]
    axis.imshow(rates, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    for line, row in enumerate(rates):
        for place, rate in enumerate(row):
            if rate == rate:
                colour = "white" if rate > DARK else "black"
                axis.text(place, line, f"{rate:.0%}", ha="center", va="center", fontsize=7.5, color=colour)
    axis.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=7.5)
    axis.tick_params(axis="y", length=0, labelleft=False)
    axis.set_title("check rate by kind of constraint", fontsize=10)
    axis.spines[:].set_visible(False)
