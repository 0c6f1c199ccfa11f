"""Policies that differ in the seed alone, taken together as one method."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.comparison.lineage import Lineage
from pipelines.comparison.policies import Compared
from tasks.evaluate import outcome

SEED = re.compile(r"[@,_\-. ]+([\w\-]+\.)?seed[=_\-]?\d+|[_\-]s?\d+$")


@dataclass(frozen=True)
class Method:
    """One policy, or several whose whole making differs in seeds alone."""

    name: str
    policies: tuple[Compared, ...]

    @property
    def runs(self) -> tuple[Compared, ...]:
        """One report of each policy that was made: one that was evaluated twice is no second seed."""
        found: dict[str, Compared] = {}
        for policy in self.policies:
            found.setdefault(policy.policy or policy.key, policy)
        return tuple(found.values())

    @property
    def seeds(self) -> int:
        """How often it was made."""
        return len(self.runs)

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the seeds, of the figures that all of them have."""
        names = set.intersection(*(set(policy.metrics) for policy in self.runs))
        return {name: statistics.fmean(self.values(name)) for name in names}

    def values(self, metric: str) -> list[float]:
        """The figure of each seed that has it."""
        return [policy.metrics[metric] for policy in self.runs if metric in policy.metrics]

    def spread(self, metric: str) -> float | None:
        """Its standard deviation over the seeds; None with one seed."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def against(self) -> str | None:
        """The report over which wins were counted."""
        return self.policies[0].against

    def outcomes(self) -> dict[int, float]:
        """By row, what decides a comparison, as a mean over the seeds; of rows that all seeds have one for."""
        each = [{row: outcome(result) for row, result in policy.outcomes.items()} for policy in self.runs]
        found: dict[int, float] = {}
        for row in each[0]:
            values = [value for one in each if (value := one.get(row)) is not None]
            if len(values) == len(each):
                found[row] = statistics.fmean(values)
        return found


def methods_of(policies: Sequence[Compared], lineage: Lineage) -> list[Method]:
    """The policies in their order; each with those that differ from it in seeds alone."""
    together: dict[str, list[Compared]] = {}
    for policy in policies:
        together.setdefault(lineage.without_seeds(policy.key), []).append(policy)
    found: dict[str, Method] = {}
    for same in together.values():
        name = _name([policy.name for policy in same], found)
        found[name] = Method(name, tuple(same))
    return list(found.values())


def _name(names: Sequence[str], taken: Collection[str]) -> str:
    """What the names have in common: `dpo` of `dpo@seed=0` and `dpo@seed=1`, or of `RUN:dpo` and `OTHER:dpo`.

    With a number behind it where that is taken: no method stands in another's place.
    """
    shared = {SEED.sub("", name.rpartition(":")[2]) for name in names}
    alone = len(names) == 1 or len(shared) > 1 or shared & set(taken)
    name = names[0] if alone else shared.pop()
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)
