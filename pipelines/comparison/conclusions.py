"""What a comparison shows and what it can't show, in plain sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Sequence

from pipelines.comparison.methods import Method
from pipelines.comparison.pairs import CHECK_RATE, SCORE, Pair
from pipelines.comparison.significance import LEVEL

VERDICTS = {"ahead": "ahead of {}", "behind": "behind {}", "no clear difference": "not told apart from {}"}


def conclusions(
    methods: Sequence[Method], pairs: Sequence[Pair], untrained: Collection[str] = frozenset()
) -> list[str]:
    """The findings, what so many prompts can't show, and what is known of other seeds; of methods that were trained."""
    if not pairs:
        return ["No prompt was judged by a check or a score for all of them, so nothing is said of differences."] * (
            len(methods) > 1
        )
    return [*_findings(methods, pairs), _power(pairs), *_seeds(methods, pairs, untrained)]


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
    corrected = f", or {together} where the correction for {len(pairs)} pairs asks most" if together != alone else ""
    return (
        f"{n} prompts like these can't tell differences below about {alone}{corrected}: a true one of that size is "
        "found four times in five (at the median spread of the pairs that differ), a smaller one less often. No clear "
        "difference is no proof that there is none."
    )


def _size(value: float, pair: Pair) -> str:
    return f"{value:.2f}" if pair.measure == SCORE else f"{math.ceil(100 * value)} points"


def _seeds(methods: Sequence[Method], pairs: Sequence[Pair], untrained: Collection[str]) -> list[str]:
    several = [method for method in methods if method.seeds > 1]
    if not several:
        return ["Each was trained with one seed: nothing is said of other seeds."]
    metric, form = ("check_rate", "{:.1%}") if pairs[0].measure == CHECK_RATE else ("score_mean", "{:.2f}")
    spreads = [_spread(method, f"eval/{metric}", form) for method in several if method.values(f"eval/{metric}")]
    said = [f"Over seeds, {metric.replace('_', ' ')} and standard deviation: {'; '.join(spreads)}."] if spreads else []
    said += _dealt(methods, [pair for pair in pairs if pair.p_seeds is not None])
    once = [method.name for method in methods if method.seeds == 1 and method.name not in untrained]
    return said + ([f"{', '.join(once)}: one seed, so that nothing is said of others."] if once else [])


def _spread(method: Method, metric: str, form: str) -> str:
    values, spread = method.values(metric), method.spread(metric)
    shown = [form.format(value) for value in (statistics.fmean(values), spread or 0.0, min(values), max(values))]
    return "{} {}±{} ({} seeds, {} to {})".format(method.name, *shown[:2], len(values), *shown[2:])


def _dealt(methods: Sequence[Method], pairs: Sequence[Pair]) -> Iterator[str]:
    """The tests over runs, those with as many runs together."""
    seeds = {method.name: method.seeds for method in methods}
    by_runs: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        by_runs.setdefault((seeds[pair.after], seeds[pair.before]), []).append(pair)
    for (after, before), mine in by_runs.items():
        least = (2 if after == before else 1) / math.comb(after + before, after)
        weak = f", so that they alone can't show one at {LEVEL:.0%}" if least >= LEVEL else ""
        found = ", ".join(f"{pair.after} - {pair.before} {pair.p_seeds:.2f}" for pair in mine)
        yield (
            f"Over seeds, how often {after} and {before} runs dealt at random differ as much: {found}; it can't be "
            f"below {least:.2f}{weak}."
        )
