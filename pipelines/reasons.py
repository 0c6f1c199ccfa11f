"""Is a planned stage cached, and if not, why: the field that differs from the nearest earlier result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.manifest import Manifest, library_versions
from artifacts.store import Store
from pipelines.plan import Plan, Planned

DEFAULT = "the default"
"""Stands for a field that isn't in a payload, since payloads leave defaults out."""


@dataclass(frozen=True)
class Verdict:
    """What a plan says of one stage."""

    cached: bool
    reason: str
    drift: str = ""
    """What has changed without entering the key: the stage's source, library versions."""


def verdicts(plan: Plan, store: Store) -> dict[str, Verdict]:
    """For each stage by label; verifies what is in the store."""
    earlier = list(store.all())
    labels = {planned.key: planned.label for planned in plan.stages}
    found = {planned.label: _verdict(planned, store, earlier, labels) for planned in plan.stages}
    store.digests.save()
    return found


def _verdict(planned: Planned, store: Store, earlier: list[Manifest], labels: Mapping[str, str]) -> Verdict:
    damage = store.damage(planned.uses, planned.key)
    if damage is None:
        return Verdict(True, "", drift(planned, Manifest.read(store.folder(planned.uses, planned.key))))
    if damage:
        return Verdict(False, f"damaged: {damage}; will be made again")
    if (maker := store.at_work(planned.uses, planned.key)) is not None:
        return Verdict(False, f"{maker} makes it now")
    if (store.draft(planned.uses, planned.key) / "work").exists():
        return Verdict(False, "interrupted earlier; goes on from its last checkpoint")
    candidates = [manifest for manifest in earlier if manifest.uses == planned.uses]
    if not candidates:
        return Verdict(False, "never run")
    nearest = min(candidates, key=lambda manifest: len(differences(manifest.payload, planned.payload)))
    return Verdict(False, "; ".join(differences(nearest.payload, planned.payload, labels)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> list[str]:
    """What differs between two payloads, one phrase a field."""
    before, after = _flat(old), _flat(new)
    pairs = {name: (before.get(name, DEFAULT), after.get(name, DEFAULT)) for name in {**before, **after}}
    phrases = [_phrase(name, old, new, labels or {}) for name, (old, new) in pairs.items() if old != new]
    return list(dict.fromkeys(phrases))


def _phrase(name: str, old: Any, new: Any, labels: Mapping[str, str]) -> str:
    group, _, field = name.partition(".")
    if group == "inputs":
        return f"{field} ({labels[new]}) is another" if new in labels else f"{field} is another"
    if group == "content":
        return f"the content of {field.split('.')[0]} changed"
    return f"{field or name}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    """A value as the recipe would spell it."""
    if value is None:
        return "null"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and (item or not prefix):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = tuple(item) if isinstance(item, list) else item
    return flat


def drift(planned: Planned, manifest: Manifest) -> str:
    """What a cached result was made with that is different now, or nothing."""
    said = []
    if manifest.source_digest != planned.stage.source_digest():
        said.append("made by other code of ours; if it now computes something else, bump its version")
    now = library_versions()
    moved = [f"{name} {old} -> {now[name]}" for name, old in manifest.versions.items() if now.get(name, old) != old]
    if moved:
        said.append("made with other libraries: " + ", ".join(moved))
    return "; ".join(said)
