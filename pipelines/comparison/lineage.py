"""The stages that made a policy, from the store's manifests alone: what they cost, what they needed, which seeds.

Nothing here knows a method. The stage that trained is the nearest one that counted the tokens that it trained on
(`cost/tokens`); merging and quantising, which only carry a policy on, are passed over. What it needed stands in the
wiring: a reward is an input or a program of a stage in its chain, and whether it samples from the policy while it
trains that, its class says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts.fingerprint import digest
from artifacts.kinds import Adapter, Artifact, Checkpoint, Quantized, RewardModel
from artifacts.manifest import Manifest
from artifacts.store import Store
from pipelines.comparison.stability import Stability
from tasks.registry import STAGES, stage_class
from tasks.rl.online import Online
from tasks.rl.settings import Sampling
from tasks.stage import Stage

SECONDS, TOKENS, MEMORY = "cost/seconds", "cost/tokens", "cost/peak_memory_bytes"
MODELS = frozenset(kind.kind for kind in (Adapter, Checkpoint, Quantized))


class Lineage:
    """Every manifest of a store, to be followed from a key to what it was made of."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manifests: dict[str, Manifest] = {manifest.key: manifest for manifest in store.all()}

    def chain(self, key: str) -> list[Manifest]:
        """The stage with this key and all that it was made of, each once, the nearest first."""
        found: dict[str, Manifest] = {}
        todo = [key]
        while todo:
            manifest = self.manifests.get(current := todo.pop(0))
            if manifest is not None and current not in found:
                found[current] = manifest
                todo += manifest.payload["inputs"].values()
        return list(found.values())

    def whole(self, key: str) -> bool:
        """Whether the store still has every stage of the chain."""
        return key in self.manifests and all(
            needed in self.manifests for one in self.chain(key) for needed in one.payload["inputs"].values()
        )

    def trained(self, policy: str) -> Manifest | None:
        """The stage that trained this policy; None for a base, or one that was trained elsewhere."""
        manifest = self.manifests.get(policy)
        while manifest is not None and TOKENS not in manifest.metrics:
            needed = [self.manifests.get(key) for key in manifest.payload["inputs"].values()]
            carried = [one for one in needed if one is not None and one.kind in MODELS]
            manifest = carried[0] if len(carried) == 1 else None
        return manifest

    def stage(self, key: str) -> Stage | None:
        """The stage bound again to its inputs; None where that can't be done, with another version of ours, say."""
        manifest = self.manifests.get(key)
        if manifest is None or manifest.uses not in STAGES:
            return None
        inputs = {name: self._output(needed) for name, needed in manifest.payload["inputs"].items()}
        try:
            return stage_class(manifest.uses).model_validate({**manifest.fields, **inputs})
        except ValidationError:
            return None

    def _output(self, key: str) -> Artifact | None:
        stage, manifest = self.stage(key), self.manifests.get(key)
        if stage is None or manifest is None:
            return None
        return stage.output(key, self.store.folder(manifest.uses, key) / "out")

    def without_seeds(self, key: str) -> str:
        """What a result is but for the seeds, its own and those of all that it was made of: equal for runs that differ
        in these alone."""
        if (manifest := self.manifests.get(key)) is None:
            return key
        payload: dict[str, Any] = {name: value for name, value in manifest.payload.items() if name != "seed"}
        inputs = {name: self.without_seeds(needed) for name, needed in payload["inputs"].items()}
        return digest({**payload, "inputs": inputs})

    def seeds(self, key: str) -> tuple[int, ...]:
        """The seeds in its chain, the nearest first, without repetition."""
        found = [one.payload["seed"] for one in self.chain(key) if "seed" in one.payload]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Spent:
    """A stage and what it cost."""

    uses: str
    key: str
    seconds: float
    tokens: float | None

    @classmethod
    def by(cls, manifest: Manifest) -> Spent:
        seconds = manifest.metrics.get(SECONDS, manifest.seconds)
        return cls(manifest.uses, manifest.key, seconds, manifest.metrics.get(TOKENS))


@dataclass(frozen=True)
class History:
    """How a policy came about. Everything is None or empty where nothing was trained here."""

    lineage: Lineage
    policy: str

    @cached_property
    def own(self) -> Manifest | None:
        """The stage that trained it."""
        return self.lineage.trained(self.policy)

    @cached_property
    def before(self) -> list[Spent]:
        """What had to be made before that stage could start, the dearest first."""
        chain = self.lineage.chain(self.own.key)[1:] if self.own else []
        return sorted(map(Spent.by, chain), key=lambda one: (-one.seconds, one.uses))

    @cached_property
    def costs(self) -> Mapping[str, float]:
        """Figures by name; seconds and bytes of the own stage, and `_before` of all before it together."""
        if self.own is None:
            return {}
        found = {name: self.own.metrics[name] for name in (SECONDS, TOKENS, MEMORY) if name in self.own.metrics}
        if self.lineage.whole(self.own.key):
            found[f"{SECONDS}_before"] = sum(one.seconds for one in self.before)
            found[f"{TOKENS}_before"] = sum(one.tokens or 0.0 for one in self.before)
        if self._estimate and self._estimate.trainable is not None:
            found["model/trainable"] = float(self._estimate.trainable)
        return found

    @cached_property
    def _estimate(self) -> Any:
        stage = self.lineage.stage(self.own.key) if self.own else None
        return stage.estimate() if stage else None

    @cached_property
    def rewards(self) -> tuple[str, ...]:
        """`model`, `program` or both: what scored completions somewhere in the chain."""
        chain = self.lineage.chain(self.own.key) if self.own else []
        model = any(one.kind == RewardModel.kind for one in chain)
        program = any(_is(one, Sampling) and one.fields.get("programs") for one in chain)
        return ("model",) * model + ("program",) * program

    @cached_property
    def sampling(self) -> str:
        """Whether completions were sampled for its training: `while training`, `beforehand` or `no`."""
        chain = self.lineage.chain(self.own.key) if self.own else []
        if any(_is(one, Online) for one in chain):
            return "while training"
        return "beforehand" if any(_is(one, Sampling) for one in chain) else "no"

    @cached_property
    def folder(self) -> Path | None:
        """Where the stage that trained it left its metrics."""
        return self.lineage.store.folder(self.own.uses, self.own.key) if self.own else None

    @cached_property
    def stability(self) -> Stability | None:
        """How its training went."""
        planned = self._estimate.steps if self._estimate else None
        return Stability.read(self.folder / "metrics.jsonl", planned) if self.folder else None


def _is(manifest: Manifest, family: type[Stage]) -> bool:
    return manifest.uses in STAGES and issubclass(stage_class(manifest.uses), family)
