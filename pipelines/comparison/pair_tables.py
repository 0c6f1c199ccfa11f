"""Pairs of methods as lines, and many of them as a square; and what judges say of pairs."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.comparison.comparison import Comparison
from pipelines.comparison.pairs import CHECK_RATE, Pair
from pipelines.comparison.tables import NONE, Rows

MATRIX_FROM = 12
"""With so many pairs, they are a square."""
MATRIX_NOTE = "The row's less the column's, in points or in the score's units; * marks what chance is ruled out for."
VERDICTS_NOTE = (
    "A win counts if the judge sees it in both orders, all else is a tie; agrees with: the share of decided pairs in "
    "which the reward model, or the rows' checks, prefer the same completion; first: the share of `first` among its "
    "choices, where 50% is fair; lost: pairs without an answer that could be read."
)


def pair_lines(comparison: Comparison) -> list[str]:
    """The pairs as lines; with many, only each method's with the one that its report names."""
    if len(comparison.pairs) < MATRIX_FROM:
        return [str(pair) for pair in comparison.pairs]
    first = {pair.after: pair for pair in reversed(comparison.pairs)}
    return [str(pair) for pair in comparison.pairs if first[pair.after] is pair]


def matrix(comparison: Comparison) -> Rows | None:
    """Many pairs as a square: the row's method less the column's; `*` where chance is ruled out."""
    if len(comparison.pairs) < MATRIX_FROM:
        return None
    names = [method.name for method in comparison.methods]
    found = {(pair.after, pair.before): _difference(pair, 1) for pair in comparison.pairs}
    found |= {(pair.before, pair.after): _difference(pair, -1) for pair in comparison.pairs}
    rows = [[row, *(found.get((row, column), "" if row != column else "·") for column in names)] for row in names]
    return ["", *names], rows


def verdicts(comparison: Comparison) -> Rows | None:
    """A row for each judge and pair of policies that it was asked about."""
    if not comparison.verdicts:
        return None
    rows = [
        [
            f"{one.name} over {one.against}", one.judge, _share(one.metrics, "judge/win_rate"),
            _share(one.metrics, "judge/ties"), f"{one.metrics['judge/pairs']:.0f}",
            f"{one.metrics['judge/nonsense'] + one.metrics['judge/failed']:.0f}",
            _agreement(one.metrics, "judge/agreement_reward"), _agreement(one.metrics, "judge/agreement_check"),
            _share(one.metrics, "judge/position_bias"),
        ]
        for one in comparison.verdicts
    ]  # fmt: skip
    headings = ["pair", "judge", "win rate", "ties", "pairs", "lost", "agrees with reward", "with checks", "first"]
    return headings, rows


def _share(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return NONE
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.1%}"
    return f"{metrics[name]:.1%} [{100 * metrics[f'{name}_low']:.1f}, {100 * metrics[f'{name}_high']:.1f}]"


def _agreement(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.1%} of {metrics[f'{name}_pairs']:.0f}" if name in metrics else NONE


def _difference(pair: Pair, sign: int) -> str:
    value = sign * pair.difference
    shown = f"{100 * value:+.1f}" if pair.measure == CHECK_RATE else f"{value:+.2f}"
    return shown + ("*" if pair.verdict != "no clear difference" else "")
