"""What a report was measured on. Figures from different held-out sets can't be compared, whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from artifacts.manifest import Manifest
from pipelines.comparison.policies import Compared

NAMES = {
    "data": "data", "rows": "rows", "scored": "rows with a loss", "max_new_tokens": "max_new_tokens",
    "temperature": "temperature", "reward": "reward model", "version": "version of the evaluation",
}  # fmt: skip
HELD_OUT_FILE = "test.jsonl"


@dataclass(frozen=True)
class HeldOut:
    """Two reports with equal ones can be compared."""

    data: str
    """Digest of the held-out rows' file; of a data stage that the store has lost, its key."""
    rows: tuple[int, ...]
    scored: int | None
    """How many of the rows loss, preference accuracy and KL were taken on."""
    max_new_tokens: int | None
    temperature: float | None
    reward: str | None
    version: int | None

    @classmethod
    def of(cls, policy: Compared, manifests: Mapping[str, Manifest]) -> HeldOut:
        """From the report's own settings and the manifest of its data."""
        key = policy.inputs.get("data", "")
        data = manifests[key].files.get(HELD_OUT_FILE) if key in manifests else None
        rows = tuple(sorted(policy.outcomes))
        limit = policy.settings.get("max_scored")
        return cls(
            data.sha256 if data else key, rows, min(limit or len(rows), len(rows)),
            policy.settings.get("max_new_tokens"), policy.settings.get("temperature"), policy.inputs.get("reward"),
            policy.settings.get("version"),
        )  # fmt: skip

    def differences(self, other: HeldOut) -> list[str]:
        """What differs, one phrase each: `max_new_tokens 48 and 16`."""
        named = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in fields(self)]
        return [f"{NAMES[name]} {_phrase(name, mine, theirs)}" for name, mine, theirs in named if mine != theirs]


def _phrase(name: str, mine: object, theirs: object) -> str:
    if name == "rows":
        assert isinstance(mine, tuple) and isinstance(theirs, tuple)
        return f"({len(mine)} and {len(theirs)} of them, {len(set(mine) & set(theirs))} in both)"
    return f"{_shown(mine)} and {_shown(theirs)}"


def _shown(value: object) -> str:
    return "none" if value is None else value[:12] if isinstance(value, str) else str(value)


def groups(policies: Sequence[Compared], manifests: Mapping[str, Manifest]) -> list[list[Compared]]:
    """The policies, those together that can be compared; in the order in which they come."""
    found: dict[HeldOut, list[Compared]] = {}
    for policy in policies:
        found.setdefault(HeldOut.of(policy, manifests), []).append(policy)
    return list(found.values())


def apart(grouped: Sequence[Sequence[Compared]], manifests: Mapping[str, Manifest]) -> list[str]:
    """Why there is more than one group: each against the first."""
    if len(grouped) < 2:
        return []
    first = grouped[0][0]
    own = HeldOut.of(first, manifests)
    return [
        f"{first.name} and {', '.join(policy.name for policy in group)} were evaluated on different held-out sets: "
        + "; ".join(own.differences(HeldOut.of(group[0], manifests)))
        for group in grouped[1:]
    ]
