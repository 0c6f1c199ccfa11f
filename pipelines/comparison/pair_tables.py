"""Pairs of methods as lines, and many of them as a square."""

from __future__ import annotations

from pipelines.comparison.comparison import Comparison
from pipelines.comparison.pairs import CHECK_RATE, Pair
from pipelines.comparison.tables import Rows

MATRIX_FROM = 12
"""With so many pairs, they are a square."""
MATRIX_NOTE = "The row's less the column's, in points or in the score's units; * marks what chance is ruled out for."


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


def _difference(pair: Pair, sign: int) -> str:
    value = sign * pair.difference
    shown = f"{100 * value:+.1f}" if pair.measure == CHECK_RATE else f"{value:+.2f}"
    return shown + ("*" if pair.verdict != "no clear difference" else "")
