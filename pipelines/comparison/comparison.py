"""A list of policies that were measured on the same held-out rows, compared in every way that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from artifacts.errors import UserError
from artifacts.store import Store
from pipelines.comparison.conclusions import conclusions
from pipelines.comparison.held_out import apart, groups
from pipelines.comparison.judged import Judged, judged
from pipelines.comparison.lineage import History, Lineage
from pipelines.comparison.methods import Method, methods_of
from pipelines.comparison.pairs import Pair, pairs_of
from pipelines.comparison.policies import Compared

PARTS = ("policies", "methods", "differences", "pairs", "verdicts", "conclusions")
REMEDY = "evaluate them with the same data and settings, or compare those alone that have them"


@dataclass(frozen=True)
class Comparison:
    """The policies of one held-out set."""

    policies: tuple[Compared, ...]
    methods: tuple[Method, ...]
    """The same policies, those together that differ in seeds alone."""
    histories: dict[str, History]
    """By the policies' names."""
    pairs: tuple[Pair, ...]
    verdicts: tuple[Judged, ...]
    conclusions: tuple[str, ...]
    lineage: Lineage

    @classmethod
    def of(cls, policies: Sequence[Compared], lineage: Lineage) -> Comparison:
        """Compare policies that can be compared."""
        beside = [policy.beside(policies) for policy in policies]
        methods = methods_of(beside, lineage)
        pairs = pairs_of(methods)
        histories = {policy.name: History(lineage, policy.policy) for policy in beside}
        untrained = {method.name for method in methods if histories[method.policies[0].name].own is None}
        said = conclusions(methods, pairs, untrained)
        verdicts = tuple(judged(beside, lineage))
        return cls(tuple(beside), tuple(methods), histories, tuple(pairs), verdicts, tuple(said), lineage)

    def history(self, method: Method) -> History:
        """How a method's first policy came about."""
        return self.histories[method.policies[0].name]

    def without_seeds(self, key: str) -> str:
        """What a result is but for seeds."""
        return self.lineage.without_seeds(key)

    def as_dict(self) -> dict[str, Any]:
        """All figures, as `align compare --json` prints them."""
        return {
            "policies": [{**_policy(policy), **_history(self.histories[policy.name])} for policy in self.policies],
            "methods": [_method(method) for method in self.methods],
            "differences": [str(pair) for pair in self.pairs],
            "pairs": [{**asdict(pair), "verdict": pair.verdict} for pair in self.pairs],
            "verdicts": [asdict(one) for one in self.verdicts],
            "conclusions": list(self.conclusions),
        }


def _policy(policy: Compared) -> dict[str, Any]:
    return {
        "name": policy.name, "metrics": policy.metrics, "by_kind": policy.by_kind, "key": policy.key,
        "policy": policy.policy, "against": policy.against, "reference": policy.reference,
    }  # fmt: skip


def _history(history: History) -> dict[str, Any]:
    own = history.own
    return {
        "trained_by": {"uses": own.uses, "key": own.key} if own else None,
        "costs": dict(history.costs),
        "before": [asdict(one) for one in history.before],
        "reward": list(history.rewards),
        "sampling": history.sampling,
        "stability": asdict(history.stability) if history.stability else None,
    }


def _method(method: Method) -> dict[str, Any]:
    spreads = {name: spread for name in method.metrics if (spread := method.spread(name)) is not None}
    return {
        "name": method.name, "policies": [policy.name for policy in method.policies], "seeds": method.seeds,
        "metrics": method.metrics,
        "spread": spreads,
    }  # fmt: skip


@dataclass(frozen=True)
class Comparisons:
    """Policies by held-out set: one comparison for each."""

    each: tuple[Comparison, ...]
    remarks: tuple[str, ...]
    """Why there is more than one."""

    @classmethod
    def of(cls, policies: Sequence[Compared], store: Store, *, alike: bool = False) -> Comparisons:
        """Compare what can be compared, each report once; with `alike`, raises UserError unless that is all."""
        unique: dict[str, Compared] = {}
        for policy in policies:
            unique.setdefault(policy.key, policy)
        lineage = Lineage(store)
        grouped = groups(list(unique.values()), lineage.manifests)
        remarks = apart(grouped, lineage.manifests)
        if alike and remarks:
            raise UserError("\n".join(f"{remark}; {REMEDY}" for remark in remarks))
        return cls(tuple(Comparison.of(group, lineage) for group in grouped), tuple(remarks))

    @property
    def policies(self) -> list[Compared]:
        return [policy for one in self.each for policy in one.policies]

    def as_dict(self) -> dict[str, Any]:
        """What `align compare --json` prints; `held_out` numbers the sets, from 0."""
        parts = [comparison.as_dict() for comparison in self.each]
        for number, part in enumerate(parts):
            for policy in part["policies"]:
                policy["held_out"] = number
        joined = {name: [line for part in parts for line in part[name]] for name in PARTS}
        return {**joined, "remarks": list(self.remarks)}
