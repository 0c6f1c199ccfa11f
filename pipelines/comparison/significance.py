"""How far differences can be trusted that were measured prompt by prompt. Pure; everything two-sided.

Differences are a matrix (n, K): a row a prompt, a column a pair of policies. Each draw is the same for all columns, so
that thousands of draws over a thousand prompts and dozens of pairs are a few products of matrices.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tasks.statistics import Interval

if TYPE_CHECKING:
    from numpy import ndarray

RESAMPLES = 4000
FLIPS = 9999
"""Random sign patterns; the smallest p-value that they can show is 1 / (FLIPS + 1)."""
ENUMERATED = 14
"""Up to so many differences that are not 0, every sign pattern is looked at."""
ASSIGNMENTS = 200_000
"""More ways than this to deal runs to two methods are not enumerated."""
BLOCK = 2_000_000
"""Random numbers in memory at a time."""
LEVEL = 0.05
POWER = 0.8
ROUNDING = 1e-9


def bootstrap_intervals(differences: ndarray, seed: int) -> list[Interval]:
    """Each column's mean with its 95% percentile bootstrap interval over prompts (Efron 1979)."""
    import numpy as np

    n = len(differences)
    draw = np.random.default_rng(seed)
    counts = (draw.multinomial(n, np.full(n, 1 / n), size=rows) for rows in _blocks(RESAMPLES, n))
    means = np.concatenate([block @ differences for block in counts]) / n
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return list(zip(differences.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True))


def sign_flip_p(differences: ndarray, seed: int) -> list[float]:
    """Each column's p-value of the paired permutation test (Fisher 1935): how often a mean at least as far from 0 comes
    of giving each prompt's difference a random sign.

    Exact where all differences that are not 0 are equally large, as those of checks are (then it is McNemar's exact
    test), and where at most ENUMERATED are not 0; else from FLIPS random patterns, with the observed one counted in
    (Phipson & Smyth 2010), so that no p is 0.
    """
    exact = [_exact_p(column[column != 0].tolist()) for column in differences.T]
    if None not in exact:
        return [p for p in exact if p is not None]
    drawn = _drawn_p(differences, seed)
    return [other if p is None else p for p, other in zip(exact, drawn, strict=True)]


def _exact_p(values: Sequence[float]) -> float | None:
    """The p-value of differences that are not 0, or None where random patterns have to do."""
    if len({abs(value) for value in values}) <= 1:
        k, up = len(values), sum(value > 0 for value in values)
        far = [math.comb(k, i) for i in range(k + 1) if abs(2 * i - k) >= abs(2 * up - k)]
        return sum(far) / 2**k
    if len(values) > ENUMERATED:
        return None
    observed, room = abs(sum(values)), ROUNDING * sum(map(abs, values))
    sums = [0.0]
    for value in values:
        sums = [total + signed for total in sums for signed in (value, -value)]
    return sum(abs(total) >= observed - room for total in sums) / len(sums)


def _drawn_p(differences: ndarray, seed: int) -> list[float]:
    import numpy as np

    draw = np.random.default_rng(seed)
    reached = np.abs(differences.sum(axis=0)) - ROUNDING * np.abs(differences).sum(axis=0)
    far = np.zeros(differences.shape[1])
    for rows in _blocks(FLIPS, len(differences)):
        signs = 2.0 * draw.integers(0, 2, size=(rows, len(differences)), dtype=np.int8) - 1.0
        far += (np.abs(signs @ differences) >= reached).sum(axis=0)
    return ((1 + far) / (1 + FLIPS)).tolist()


def _blocks(rows: int, width: int) -> Iterator[int]:
    """`rows` in parts, each of at most BLOCK numbers."""
    size = max(1, BLOCK // width)
    yield from (min(size, rows - start) for start in range(0, rows, size))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted so that the chance of any false finding stays at the level (Holm
    1979): the i-th smallest of m becomes max over j <= i of (m - j + 1) p_(j), at most 1."""
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def smallest_difference(spread: float, n: int, tests: int = 1) -> float:
    """The true mean difference that a two-sided test at LEVEL / `tests` on n prompts finds four times in five, where
    differences have the standard deviation `spread`: (z_{1 - LEVEL / (2 tests)} + z_POWER) spread / sqrt(n)."""
    quantile = statistics.NormalDist().inv_cdf
    return (quantile(1 - LEVEL / (2 * tests)) + quantile(POWER)) * spread / math.sqrt(n)


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float | None:
    """How often two groups of runs dealt at random differ in their means at least as much as these do; exact.

    None where the ways to deal are too many to look at.
    """
    every, k = [*first, *second], len(first)
    if math.comb(len(every), k) > ASSIGNMENTS:
        return None
    room = ROUNDING * sum(map(abs, every))
    apart = _apart(every)
    observed = apart(range(k))
    ways = [apart(chosen) for chosen in itertools.combinations(range(len(every)), k)]
    return sum(way >= observed - room for way in ways) / len(ways)


def _apart(values: Sequence[float]) -> Callable[[Any], float]:
    """How far the mean of the values at some places is from the mean of the others."""
    total, n = sum(values), len(values)

    def of(places: Sequence[int]) -> float:
        inside = sum(values[place] for place in places)
        return abs(inside / len(places) - (total - inside) / (n - len(places)))

    return of
