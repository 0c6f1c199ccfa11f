"""What became of each challenger of a champion, remembered where every machine finds it: as tags of its version.

One tag a question: whether this model, so measured, takes the place of that champion under that gate. What was kept out
stays out and what was rolled back stays back until something of the question changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow.entities.model_registry import ModelVersion

from flows.registry.versions import Versions
from flows.tracking.mlflow_server import KEY_TAG

TAG = "align.decision."
Outcome = Literal["promoted", "kept", "unchanged"]


@dataclass(frozen=True)
class Decision:
    """Whether a model became champion, and why; versions are as they were right after."""

    outcome: Outcome
    model: str
    key: str
    """Of the stage that made the challenger."""
    version: str | None
    champion: str | None
    previous: str | None
    when: str
    conditions: list[dict[str, Any]] = field(default_factory=list)
    run_id: str | None = None
    why: str = ""
    """For `unchanged`, what there was nothing to decide about."""

    @property
    def failed(self) -> list[str]:
        """The conditions that failed, with their figures."""
        return [_with_figures(one) for one in self.conditions if not one["passed"]]

    @property
    def said(self) -> str:
        """One sentence."""
        if self.outcome == "unchanged":
            return f"unchanged: {self.why}"
        if self.outcome == "promoted":
            before = f"; version {self.previous} is `previous`" if self.previous else ""
            return f"promoted: version {self.version} of {self.model} is champion{before}"
        stays = f"version {self.champion} stays champion of {self.model}" if self.champion else (
            f"{self.model} still has no champion"
        )  # fmt: skip
        return f"kept: {stays}, not version {self.version}: {'; '.join(self.failed)}"

    def remember(self, versions: Versions, version: str, question: str) -> None:
        """As a tag of the version that it is about."""
        about = {name: value for name, value in asdict(self).items() if name not in ("conditions", "why")}
        versions.tag(version, TAG + question[:32], json.dumps({**about, "failed": self.failed}))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decided(versions: Versions, champion: ModelVersion | None, key: str, question: str) -> Decision | None:
    """That nothing is to be decided, and since when: the model is the champion, or was judged so before."""
    number = str(champion.version) if champion is not None else None
    if champion is not None and champion.tags.get(KEY_TAG) == key:
        since = next(iter(_remembered(champion, "promoted")), None)
        when = since["when"] if since is not None else _iso(champion.creation_timestamp)
        why = f"{_made(key)} is version {number}, the champion of {versions.name}, since {when}"
        return _unchanged(versions, key, str(number), number, when, why)
    for version in versions.all():
        if (found := _read(version.tags.get(TAG + question[:32], ""))) is None:
            continue
        stays = f"version {number} stays champion" if number else "there is no champion"
        why = f"{_made(key)}, version {version.version} of {versions.name}, {_before(found)}; {stays}"
        return _unchanged(versions, key, str(version.version), number, found["when"], why)
    return None


def made_again(versions: Versions, champion: ModelVersion, key: str, run_id: str) -> Decision:
    """Other settings, or other data, and yet the champion's bytes: there is nothing to measure."""
    number, when = str(champion.version), now()
    why = f"{_made(key)} has the bytes of version {number}, the champion of {versions.name}"
    return _unchanged(versions, key, number, number, when, why, run_id)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _unchanged(
    versions: Versions, key: str, version: str, champion: str | None, when: str, why: str, run_id: str | None = None
) -> Decision:
    previous = versions.aliases.get("previous")
    return Decision("unchanged", versions.name, key, version, champion, previous, when, run_id=run_id, why=why)


def _before(found: Mapping[str, Any]) -> str:
    """What became of it, when it was judged over this same champion."""
    if found["outcome"] == "kept":
        return f"was kept out on {found['when']} ({'; '.join(found['failed'])})"
    if found["outcome"] == "promoted":
        return f"was promoted over this champion on {found['when']} and has been rolled back since"
    return f"had the champion's bytes on {found['when']}"


def _remembered(version: ModelVersion, outcome: Outcome) -> Sequence[dict[str, Any]]:
    """Its decisions with this outcome, the newest first."""
    every = [_read(text) for name, text in version.tags.items() if name.startswith(TAG)]
    alike = [one for one in every if one is not None and one["outcome"] == outcome]
    return sorted(alike, key=lambda one: one["when"], reverse=True)


def _read(text: str) -> dict[str, Any] | None:
    """A remembered decision; None for what someone has changed so that it is none."""
    try:
        found = json.loads(text)
        return {"outcome": str(found["outcome"]), "when": str(found["when"]), "failed": list(map(str, found["failed"]))}
    except (ValueError, TypeError, KeyError):
        return None


def _with_figures(one: Mapping[str, Any]) -> str:
    wanted = "" if one["wanted"] is None or "champion" not in one["condition"] else f" = {one['wanted']:.4g}"
    return f"{one['condition']}{wanted} failed with {one['got']:.4g}"


def _made(key: str) -> str:
    return f"what this recipe makes ({key[:12]})"


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
