"""What a comparison shows and what it can't show, in plain sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pipelines.comparison.methods import Method
from pipelines.comparison.pairs import CHECK_RATE, SCORE, Pair
from pipelines.comparison.significance import LEVEL

VERDICTS = {"ahead": "ahead of {}", "behind": "behind {}", "no clear difference": "not told apart from {}"}


def conclusions(methods: Sequence[Method], pairs: Sequence[Pair]) -> list[str]:
    """The findings, what so many prompts can't show, and what is known of other seeds."""
    if not pairs:
        return ["No prompt was judged by a check or a score for all of them, so nothing is said of differences."] * (
            len(methods) > 1
        )
    return [*_findings(methods, pairs), _power(pairs), *_seeds(methods, pairs)]


def _findings(methods: Sequence[Method], pairs: Sequence[Pair]) -> list[str]:
    """One sentence for each method that others are set against first."""
    first = {pair.after: pair for pair in reversed(pairs)}
    said = []
    for before in dict.fromkeys(pair.before for pair in first.values()):
        mine = [pair for pair in pairs if first.get(pair.after) is pair and pair.before == before]
        parts = [
            f"{', '.join(names)} {phrase.format(before)}"
            for verdict, phrase in VERDICTS.items()
            if (names := [pair.after for pair in mine if pair.verdict == verdict])
        ]
        said.append("; ".join(parts))
    tests = f"{len(pairs)} paired permutation tests" if len(pairs) > 1 else "a paired permutation test"
    how = f"{pairs[0].measure} on {pairs[0].prompts} prompts, {tests} at {LEVEL:.0%}"
    holm = ", with Holm's correction for all of them" if len(pairs) > 1 else ""
    return [f"By {how}{holm}: {'. '.join(said)}."]


def _power(pairs: Sequence[Pair]) -> str:
    n, apart = pairs[0].prompts, [pair for pair in pairs if pair.smallest > 0]
    if not apart:
        return f"On none of {n} prompts do any two of them differ, so their spread, and what it would hide, is unknown."
    alone = _size(statistics.median(pair.smallest for pair in apart), apart[0])
    together = _size(statistics.median(pair.smallest_holm for pair in apart), apart[0])
    corrected = f", or {together} where the correction for {len(pairs)} pairs asks most" if len(pairs) > 1 else ""
    return (
        f"{n} prompts like these can't tell differences below about {alone}{corrected}: a true one of that size is "
        "found four times in five (at the median spread of the pairs that differ), a smaller one less often. No clear "
        "difference is no proof that there is none."
    )


def _size(value: float, pair: Pair) -> str:
    return f"{value:.2f}" if pair.measure == SCORE else f"{math.ceil(100 * value)} points"


def _seeds(methods: Sequence[Method], pairs: Sequence[Pair]) -> list[str]:
    metric = "eval/check_rate" if pairs[0].measure == CHECK_RATE else "eval/score_mean"
    several = [method for method in methods if len(method.policies) > 1]
    if not several:
        return ["Each was trained with one seed: nothing is said of other seeds."]
    said = [_spread(method, metric) for method in several if method.values(metric)]
    said += [_dealt(pair, methods) for pair in pairs if pair.p_seeds is not None]
    once = [method.name for method in methods if len(method.policies) == 1]
    return said + ([f"{', '.join(once)}: one seed, so that nothing is said of others."] if once else [])


def _spread(method: Method, metric: str) -> str:
    values, name = method.values(metric), metric.removeprefix("eval/").replace("_", " ")
    form = "{:.1%}" if metric == "eval/check_rate" else "{:.2f}"
    mean, spread, low, high = (
        form.format(value) for value in (statistics.fmean(values), method.spread(metric), min(values), max(values))
    )
    return f"{method.name}, {len(values)} seeds: {name} {mean}, standard deviation {spread}, from {low} to {high}."


def _dealt(pair: Pair, methods: Sequence[Method]) -> str:
    counts = [len(method.policies) for method in methods if method.name in (pair.before, pair.after)]
    ways, mirrored = math.comb(sum(counts), counts[0]), 2 if counts[0] == counts[1] else 1
    return (
        f"{pair.after} - {pair.before} over seeds: runs dealt to the two at random are as far apart with p = "
        f"{pair.p_seeds:.2f}; with {counts[0]} and {counts[1]} runs p can't be below {mirrored / ways:.2f}."
    )
