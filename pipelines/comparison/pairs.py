"""Methods in pairs, prompt by prompt: how large the difference is, and whether chance alone makes one so large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.comparison.methods import Method
from pipelines.comparison.significance import (
    LEVEL,
    bootstrap_intervals,
    holm,
    permutation_p,
    sign_flip_p,
    smallest_difference,
)

if TYPE_CHECKING:
    from numpy import ndarray

CHECK_RATE, SCORE, NET_WINS = "check rate", "score", "net wins"
"""What a pair differs in. Net wins, where some rows have a check and others a score, are wins less losses a prompt."""


@dataclass(frozen=True)
class Pair:
    """How `after` differs from `before` on the prompts that both have."""

    before: str
    after: str
    measure: str
    prompts: int
    difference: float
    low: float
    high: float
    """The 95% bootstrap interval of this pair by itself."""
    p: float
    """Of the paired permutation test."""
    p_holm: float
    """Corrected for all pairs that are shown beside it."""
    smallest: float
    """The true difference that so many prompts show four times in five, at this pair's spread, by itself."""
    smallest_holm: float
    """The same where the correction asks most of it, as it does of the pair with the smallest p."""
    p_seeds: float | None
    """Over runs with other seeds: how often runs dealt at random differ so much. None unless both have several."""

    @property
    def verdict(self) -> str:
        """`ahead`, `behind` or `no clear difference`."""
        if self.p_holm >= LEVEL:
            return "no clear difference"
        return "ahead" if self.difference > 0 else "behind"

    def shown(self, value: float) -> str:
        """A difference in its measure: shares in percent."""
        return f"{value:+.2f}" if self.measure == SCORE else f"{value:+.1%}"

    def __str__(self) -> str:
        interval = f"{self.shown(self.difference)} [{self.shown(self.low)}, {self.shown(self.high)}]"
        return f"{self.after} - {self.before}: {interval}, {p_shown(self.p_holm)}, {self.verdict}"


def p_shown(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def wiring(methods: Sequence[Method]) -> list[tuple[Method, Method]]:
    """Which pairs: each method with the one that its report names, and with all earlier ones that share that one.

    A method that would have no pair is set against the one before it.
    """
    places = {policy.key: place for place, method in enumerate(methods) for policy in method.policies if policy.key}
    origins = [places.get(method.against or "", method.against) for method in methods]
    found: list[tuple[Method, Method]] = []
    for place, (method, origin) in enumerate(zip(methods, origins, strict=True)):
        others = [methods[origin]] if isinstance(origin, int) and origin != place else []
        others += [methods[i] for i in range(place) if origin is not None and origins[i] == origin]
        found += [(other, method) for other in others or methods[max(0, place - 1) : place]]
    return found


def pairs_of(methods: Sequence[Method], seed: int = 0) -> list[Pair]:
    """Every pair, with tests corrected for all of them together; none where no prompt was judged."""
    import numpy as np

    wired = wiring(methods)
    rows, measure = judged(methods)
    if not wired or not rows:
        return []
    outcomes = {method.name: method.outcomes() for method in methods}
    values = {name: np.array([found[row] for row in rows]) for name, found in outcomes.items()}
    differences = np.stack([values[after.name] - values[before.name] for before, after in wired], axis=1)
    if measure == NET_WINS:
        differences = np.sign(differences)
    return _tested(wired, differences, measure, seed)


def _tested(wired: Sequence[tuple[Method, Method]], differences: ndarray, measure: str, seed: int) -> list[Pair]:
    n = len(differences)
    p_values = sign_flip_p(differences, seed)
    spreads = differences.std(axis=0, ddof=1).tolist() if n > 1 else [0.0] * len(wired)
    found = zip(wired, bootstrap_intervals(differences, seed), p_values, holm(p_values), spreads, strict=True)
    return [
        Pair(
            before.name, after.name, measure, n, *interval, p, adjusted, smallest_difference(spread, n),
            smallest_difference(spread, n, len(wired)), over_seeds(before, after, measure),
        )
        for (before, after), interval, p, adjusted, spread in found
    ]  # fmt: skip


def judged(methods: Sequence[Method]) -> tuple[list[int], str]:
    """The rows that every method has an outcome for, and what outcomes are: checks, scores, or on some rows each."""
    rows = sorted(set.intersection(*(set(method.outcomes()) for method in methods))) if methods else []
    by_row = methods[0].policies[0].outcomes if methods else {}
    checked = [_is_checked(by_row[row]) for row in rows]
    return rows, CHECK_RATE if all(checked) else NET_WINS if any(checked) else SCORE


def _is_checked(result: Mapping[str, Any]) -> bool:
    return "passed" in result


def over_seeds(before: Method, after: Method, measure: str) -> float | None:
    """The permutation test over runs; None unless both methods were run with several seeds, and measured alike: where
    checks decide some rows and scores others there is only the win rate, which hangs on its opponent."""
    if measure == NET_WINS and before.against != after.against:
        return None
    metric = {CHECK_RATE: "eval/check_rate", SCORE: "eval/score_mean"}.get(measure, "eval/win_rate")
    first, second = after.values(metric), before.values(metric)
    return permutation_p(first, second) if len(first) > 1 and len(second) > 1 else None
