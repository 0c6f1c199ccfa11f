"""Recipe -> plan: ordered, type-checked, keyed, before anything runs. Pure but for reading what is to be hashed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.fingerprint import digest
from artifacts.kinds import Artifact
from artifacts.manifest import library_versions
from artifacts.store import Store
from pipelines.problems import Problems, did_you_mean, field_problems
from pipelines.recipe import Recipe
from tasks.registry import stage_class
from tasks.stage import Stage

KEY_SCHEMA = 1


@dataclass(frozen=True)
class Planned:
    """A stage of the plan: bound to its inputs' handles, with its key and the handle of its own output."""

    label: str
    uses: str
    stage: Stage
    key: str
    payload: dict[str, Any]
    """What the key is the digest of."""
    handle: Artifact
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The stages in the order in which they run."""

    recipe: Recipe
    stages: tuple[Planned, ...]

    def __getitem__(self, label: str) -> Planned:
        return next(planned for planned in self.stages if planned.label == label)

    def until(self, label: str | None) -> Plan:
        """The stages that `label` needs, and itself."""
        if label is None:
            return self
        names = [planned.label for planned in self.stages]
        if label not in names:
            raise UserError(f"--until: no stage is named {label!r}" + did_you_mean(label, names))
        wanted: set[str] = set()
        todo = [label]
        while todo:
            wanted.add(current := todo.pop())
            todo.extend(self[current].needs)
        return Plan(self.recipe, tuple(planned for planned in self.stages if planned.label in wanted))


def make_plan(recipe: Recipe, store: Store, *, strict_env: bool = False) -> Plan:
    """Check and key every stage; raises RecipeError (all problems at once) or another UserError."""
    wiring = _check(recipe)
    planned: dict[str, Planned] = {}
    for label in _ordered(wiring):
        planned[label] = _bind(recipe, label, wiring[label], planned, store, strict_env)
    store.digests.save()
    return Plan(recipe, tuple(planned.values()))


def _check(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Validate every field and input; gives, for each stage, its inputs as {field: stage label}."""
    problems = Problems(str(recipe.path))
    wiring = {label: _check_stage(recipe, label, problems) for label in recipe.stages}
    problems.raise_if_any()
    if cycle := _cycle(wiring):
        problems.add(" -> ".join(cycle), "these stages wait for each other; an input must come from an earlier stage")
    problems.raise_if_any()
    return wiring


def _check_stage(recipe: Recipe, label: str, problems: Problems) -> dict[str, str]:
    fields = dict(recipe.stages[label])
    cls = stage_class(fields.pop("uses"))
    wired = {}
    for name, wanted in cls.inputs().items():
        given = fields.get(name)
        if given is None:
            continue
        fields[name] = wanted.kind.model_construct(key="", path=Path())
        if not isinstance(given, str):
            problems.add(f"{label}.{name}", f"wanted the name of a stage, got {given!r}")
        elif given not in recipe.stages:
            problems.add(f"{label}.{name}", f"no stage is named {given!r}" + did_you_mean(given, recipe.stages))
        else:
            wired[name] = given
    problems.extend(field_problems(cls, fields, label))
    return wired


def _cycle(wiring: Mapping[str, Mapping[str, str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(label: str, path: list[str]) -> list[str] | None:
        if label in path:
            return [*path[path.index(label) :], label]
        if label in done:
            return None
        for needed in wiring[label].values():
            if cycle := visit(needed, [*path, label]):
                return cycle
        done.add(label)
        return None

    return next((cycle for label in wiring if (cycle := visit(label, []))), None)


def _ordered(wiring: Mapping[str, Mapping[str, str]]) -> list[str]:
    """By depth, then as the recipe says: so all data is checked before anything trains."""
    depth: dict[str, int] = {}

    def of(label: str) -> int:
        if label not in depth:
            depth[label] = 1 + max((of(needed) for needed in wiring[label].values()), default=-1)
        return depth[label]

    return sorted(wiring, key=of)


def _bind(
    recipe: Recipe,
    label: str,
    wired: Mapping[str, str],
    done: Mapping[str, Planned],
    store: Store,
    strict_env: bool,
) -> Planned:
    fields = dict(recipe.stages[label])
    uses = fields.pop("uses")
    cls = stage_class(uses)
    problems = Problems(str(recipe.path))
    for name, needed in wired.items():
        handle, wanted = done[needed].handle, cls.inputs()[name].kind
        if not isinstance(handle, wanted):
            makers = [other.label for other in done.values() if isinstance(other.handle, wanted)]
            problems.add(
                f"{label}.{name}",
                f"wanted a {wanted.kind}, but {needed!r} makes a {handle.kind}. "
                f"Stages here that make one: {', '.join(makers) or 'none'}",
            )
        fields[name] = handle
    problems.raise_if_any()
    problems.extend(field_problems(cls, fields, label))
    problems.raise_if_any()
    stage = _located(cls.model_validate(fields), recipe, label)
    payload = _payload(stage, uses, recipe, store, strict_env)
    key = digest(payload)
    handle = stage.output(key, store.folder(uses, key) / "out")
    return Planned(label, uses, stage, key, payload, handle, tuple(dict.fromkeys(wired.values())))


def _located(stage: Stage, recipe: Recipe, label: str) -> Stage:
    try:
        return stage.locate(recipe.folders)
    except UserError as error:
        raise type(error)(f"{recipe.path}: {label}: {error}") from error


def _payload(stage: Stage, uses: str, recipe: Recipe, store: Store, strict_env: bool) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "schema": KEY_SCHEMA,
        "uses": uses,
        "version": stage.version,
        "fields": stage.identity(),
        "inputs": {name: artifact.key for name, artifact in stage.bound().items()},
        "content": stage.content(store.digests),
    }
    if stage.seeded:
        payload["seed"] = recipe.seed
    if stage.micro_batch_matters():
        payload["micro_batch"] = recipe.execution.micro_batch
    if strict_env:
        payload["versions"] = library_versions()
    return payload
