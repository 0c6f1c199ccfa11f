"""What judges said of the policies that are compared: the `judge` stages over two of their reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from artifacts.kinds import Verdicts
from artifacts.manifest import Manifest
from pipelines.comparison.lineage import Lineage
from pipelines.comparison.policies import Compared


@dataclass(frozen=True)
class Judged:
    """One judge's verdicts on two policies."""

    name: str
    """The policy whose wins are counted."""
    against: str
    judge: str
    """The model's name at its endpoint, or the name or the key of the model that judged."""
    key: str
    metrics: dict[str, float]
    """`judge/*`, as tasks/judging/verdicts.py lists them."""


def judged(policies: Sequence[Compared], lineage: Lineage) -> list[Judged]:
    """Of every judge stage in the store over two of these reports, in the policies' order; the newest of a judge that
    was asked in several ways comes first."""
    names = {policy.key: policy.name for policy in policies}
    models = {policy.policy: policy.name for policy in policies}
    order = list(names)
    found = [manifest for manifest in lineage.manifests.values() if _over(manifest, names)]
    found.sort(key=lambda one: [order.index(one.payload["inputs"][side]) for side in ("report", "against")])
    return [
        Judged(names[inputs["report"]], names[inputs["against"]], judge, manifest.key, manifest.metrics)
        for manifest, judge in _named(found, models, lineage)
        for inputs in [manifest.payload["inputs"]]
    ]


def _over(manifest: Manifest, names: dict[str, str]) -> bool:
    inputs = manifest.payload["inputs"]
    return manifest.kind == Verdicts.kind and inputs["report"] in names and inputs["against"] in names


def _named(found: Sequence[Manifest], models: dict[str, str], lineage: Lineage) -> Iterator[tuple[Manifest, str]]:
    for manifest in found:
        about = json.loads((lineage.store.folder(manifest.uses, manifest.key) / "out" / "verdicts.json").read_text())
        who = str(about["judge"])
        local = "policy" in manifest.payload["inputs"]
        yield manifest, models.get(who, who[:12]) if local else who
