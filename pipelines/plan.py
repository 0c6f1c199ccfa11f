"""Recipe -> plan: ordered, type-checked, keyed, before anything runs. Pure but for reading what is to be hashed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from artifacts.fingerprint import digest
from artifacts.kinds import Artifact
from artifacts.manifest import library_versions
from artifacts.store import Store
from pipelines.problems import Problems, did_you_mean
from pipelines.recipe import Recipe
from pipelines.wiring import check_stages, ordered, with_needs
from tasks.context import Execution
from tasks.parallel.settings import machine_problem
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
    seed: int
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
        """The stages that `label` needs, and itself; of a swept one all branches, unless one is named."""
        if label is None:
            return self
        names = [planned.label for planned in self.stages]
        if not (ends := branches_of(label, names)):
            raise no_stage("--until", label, names)
        wanted = with_needs(ends, {planned.label: planned.needs for planned in self.stages})
        return Plan(self.recipe, tuple(planned for planned in self.stages if planned.label in wanted))

    def numbered(self, numbers: Mapping[str, int], store: Store, *, strict_env: bool = False) -> Plan:
        """The plan in which these stages have the numbers that they got when they were made afresh.

        By label and not by override, which comes before a sweep: each branch has a number of its own.
        """
        own = {label: {"refresh": number} for label, number in numbers.items()}
        stages = {label: {**fields, **own.get(label, {})} for label, fields in self.recipe.stages.items()}
        return make_plan(self.recipe.model_copy(update={"stages": stages}), store, strict_env=strict_env)


def branches_of(label: str, names: Collection[str]) -> list[str]:
    """The stage of this name or, if it was swept, all its branches."""
    return [name for name in names if name == label or name.startswith(f"{label}@")]


def no_stage(where: str, label: str, names: Collection[str]) -> UserError:
    return UserError(f"{where}: no stage is named {label!r}" + did_you_mean(label, names))


def make_plan(recipe: Recipe, store: Store, *, strict_env: bool = False, refresh: Collection[str] = ()) -> Plan:
    """Key every stage; raises RecipeError (all problems at once) or another UserError.

    A stage to `refresh` gets the first number in its key under which nothing is finished yet: nothing is overwritten,
    and what was begun and killed is gone on with.
    """
    problems = Problems(str(recipe.path))
    wiring, stages = check_stages(recipe.stages, problems)
    for label, stage in stages.items():
        if problem := stage.execution_problem(recipe.execution):
            problems.add(label, problem)
    if problem := machine_problem(recipe.execution.launch, recipe.execution.device):
        problems.add("execution.launch", problem)
    problems.raise_if_any()
    afresh = set[str]()
    for label in refresh:
        if not (found := branches_of(label, recipe.stages)):
            raise no_stage("--refresh", label, recipe.stages)
        afresh.update(found)
    located = _located(recipe, stages)
    planned: dict[str, Planned] = {}
    for label in ordered(wiring):
        inputs = {name: planned[needed].handle for name, needed in wiring[label].items()}
        stage = located[label].model_copy(update=inputs)
        if problem := stage.input_problem():
            problems.add(label, problem)
        uses = recipe.stages[label]["uses"]
        seed = recipe.seed_of(label)
        payload = _payload(stage, uses, seed, recipe.execution, store, strict_env)
        payload, key = _refreshed(payload, recipe.stages[label].get("refresh", 0), label in afresh, store)
        handle = stage.output(key, store.folder(uses, key) / "out")
        needs = tuple(dict.fromkeys(wiring[label].values()))
        planned[label] = Planned(label, uses, stage, key, payload, seed, handle, needs)
    problems.raise_if_any()
    store.digests.save()
    return Plan(recipe, tuple(planned.values()))


def _located(recipe: Recipe, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Every stage with its files found; raises one error that names all that are missing."""
    found, errors = {}, []
    for label, stage in stages.items():
        try:
            found[label] = stage.locate(recipe.folders)
        except UserError as error:
            errors.append(type(error)(f"{recipe.path}: {label}: {error}"))
    if not errors:
        return found
    same = all(type(error) is type(errors[0]) for error in errors)
    raise (type(errors[0]) if same else UserError)("\n".join(map(str, errors)))


def _refreshed(payload: dict[str, Any], times: int, afresh: bool, store: Store) -> tuple[dict[str, Any], str]:
    """The payload with the number of a refreshed stage, and its digest."""
    for number in itertools.count(times + afresh):
        numbered = {**payload, "refresh": number} if number else payload
        key = digest(numbered)
        if not afresh or not store.folder(payload["uses"], key).exists():
            return numbered, key
    raise AssertionError("the numbers have no end")


def _payload(
    stage: Stage, uses: str, seed: int, execution: Execution, store: Store, strict_env: bool
) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "schema": KEY_SCHEMA,
        "uses": uses,
        "version": stage.version,
        "fields": stage.identity(),
        "inputs": {name: artifact.key for name, artifact in stage.bound().items()},
        "content": stage.content(store.digests),
    }
    if stage.seeded:
        payload["seed"] = seed
    if (micro_batch := stage.keyed_micro_batch(execution)) is not None:
        payload["micro_batch"] = micro_batch
    if strict_env:
        payload["versions"] = library_versions()
    return payload
