"""How fast earlier stages went on this machine, and so how long a planned one may take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import median

from artifacts.kinds import Artifact, Model, base_of
from artifacts.machine import machine_name
from artifacts.manifest import Manifest
from artifacts.store import Store
from tasks.stage import Stage

Pace = tuple[str, str]
"""What a stage `uses`, and the key of the base that its model starts from."""


class Paces:
    """Tokens a second by kind of stage and base: the median over all finished stages that this machine made."""

    def __init__(self, store: Store) -> None:
        made = {manifest.key: manifest for manifest in store.all()}
        here, found = machine_name(), defaultdict(list)
        for manifest in made.values():
            tokens, seconds = (manifest.metrics.get(f"cost/{name}", 0.0) for name in ("tokens", "seconds"))
            base = _base_key(manifest, made)
            if manifest.machine == here and tokens > 0 and seconds > 0 and base is not None:
                found[manifest.uses, base].append(tokens / seconds)
        self._found: Mapping[Pace, float] = {pace: median(each) for pace, each in found.items()}

    def seconds(self, uses: str, stage: Stage, tokens: int | None) -> float | None:
        """For so many tokens; None if no such stage has finished here."""
        model = _start(stage.bound())
        if model is None or tokens is None:
            return None
        pace = self._found.get((uses, base_of(model).key))
        return None if pace is None else tokens / pace


def _start(inputs: Mapping[str, Artifact]) -> Model | None:
    start = inputs.get("policy") or inputs.get("base")
    return start if isinstance(start, Model) else None


def _base_key(manifest: Manifest, made: Mapping[str, Manifest]) -> str | None:
    """The key of the checkpoint that it started from; None where an adapter on the way is gone."""
    key = _input(manifest)
    while key is not None and key in made and made[key].kind == "adapter":
        key = _input(made[key])
    return key if key is not None and (key not in made or made[key].kind != "adapter") else None


def _input(manifest: Manifest) -> str | None:
    inputs: Mapping[str, str] = manifest.payload.get("inputs", {})
    return inputs.get("policy") or inputs.get("base")
