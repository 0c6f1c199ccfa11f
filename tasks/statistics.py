"""Intervals that say how far a figure can be trusted: all at 95%."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

Z = 1.959964
"""The normal quantile of a two-sided 95% interval."""
RESAMPLES = 2000

Interval = tuple[float, float, float]
"""Estimate, low, high."""


def share_interval(outcomes: Sequence[bool]) -> Interval:
    """A share with its Wilson interval (Wilson 1927), which stays within 0 and 1 and works at both ends."""
    n, share = len(outcomes), sum(outcomes) / len(outcomes)
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return share, max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> Interval:
    """A mean with its normal interval."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    half = Z * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def wins(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """1 where the first of a pair is greater, a half for a tie, else 0."""
    return [1.0 if mine > other else 0.5 if mine == other else 0.0 for mine, other in pairs]


def win_rate(pairs: Sequence[tuple[float, float]], seed: int) -> Interval:
    """How often the first of a pair is greater, ties half, with a bootstrap interval over the prompts."""
    return bootstrap_mean(wins(pairs), seed)


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """A mean with its percentile bootstrap interval (Efron 1979)."""
    draw, n = random.Random(seed), len(values)
    means = sorted(sum(draw.choices(values, k=n)) / n for _ in range(RESAMPLES))
    return sum(values) / n, means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
