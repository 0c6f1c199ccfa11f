"""Plans, and `align plan`: for each stage whether it is cached or why not, parameters, memory, steps. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.store import Store
from flows.commands.plan_tables import fit_lines, memory_table, plan_table
from flows.deployments.triggered import allowed_here
from flows.home import align_home
from flows.running.pace import Paces
from flows.tracking.fetching import fetched
from pipelines.plan import Plan, make_plan
from pipelines.problems import did_you_mean
from pipelines.reasons import Verdict, verdicts
from pipelines.recipe import load_recipe
from pipelines.sweep import MOST_BRANCHES, Sweep
from tasks.lora import LoRA
from tasks.memory.devices import Device, device_here, named_device
from tasks.memory.fitting import largest_micro_batch
from tasks.memory.lengths import Lengths
from tasks.stage import Terms, derive_seed


@dataclass(frozen=True)
class Wanted:
    """What a user asks for: a recipe, what differs from it, and how far to go."""

    recipe: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    sweep: Sweep = field(default_factory=dict)
    max_branches: int = MOST_BRANCHES
    until: str | None = None
    strict_env: bool = False
    refresh: tuple[str, ...] = ()
    """Stages to make afresh."""
    from_form: bool = False
    """Whether the recipe was written here, from a form or from a recipe that was looked at."""

    @property
    def changes(self) -> str:
        """What differs from the recipe, as it is typed."""
        said = {**self.overrides, **{name: "|".join(map(str, values)) for name, values in self.sweep.items()}}
        return " ".join(f"{name}={value}" for name, value in said.items())


@dataclass(frozen=True)
class Shown:
    """How a plan is to be shown."""

    as_json: bool = False
    why: str | None = None
    memory: bool = False
    """Also by part, with tokens, disk and time."""
    device: str | None = None
    """The name of a device to plan for; by default the one that is here."""


def plan_of(wanted: Wanted, store: Store) -> Plan:
    """The plan of a recipe; raises UserError for all that is wrong with it, or may not be where it was started."""
    allowed = allowed_here()
    if allowed is not None and not wanted.from_form:
        allowed.require(wanted.recipe)
    recipe = load_recipe(wanted.recipe, wanted.overrides, wanted.execution, wanted.sweep, wanted.max_branches)
    if allowed is not None:
        recipe = allowed.restricted(recipe)
    plan = make_plan(fetched(recipe, store.home), store, strict_env=wanted.strict_env, refresh=wanted.refresh)
    return plan.until(wanted.until)


def show_plan(wanted: Wanted, shown: Shown) -> int:
    """Print the plan; changes nothing but the memory of file digests and what is fetched."""
    device = named_device(shown.device) if shown.device else None
    store = Store(align_home())
    plan = plan_of(wanted, store)
    found = verdicts(plan, store)
    if shown.why is not None:
        return _why(plan, found, shown.why)
    device = device or device_here(plan.recipe.execution.device)
    ahead, paces = _ahead(plan, device), Paces(store)
    stages = [_line(plan, label, verdict, device, ahead, paces) for label, verdict in found.items()]
    if shown.as_json:
        place = {"name": device.name, "kind": device.kind, "bytes": device.bytes}
        print(json.dumps({"recipe": str(wanted.recipe), "device": place, "stages": stages}))
        return 0
    print(plan_table(stages))
    if shown.memory:
        print("\n" + memory_table(stages))
    if fit := fit_lines(stages, str(device)):
        print("\n" + "\n".join(fit))
    return 0


def _ahead(plan: Plan, device: Device) -> Terms:
    """What can be said of the rows and adapters that each stage makes before it has."""
    bounds: dict[str, Lengths] = {}
    adapters: dict[str, LoRA] = {}
    terms = Terms(plan.recipe.execution, device.kind, bounds, adapters=adapters)
    for planned in plan.stages:
        if (bound := planned.stage.row_bound(terms)) is not None:
            bounds[planned.key] = bound
        if (settings := planned.stage.adapter_settings(terms)) is not None:
            adapters[planned.key] = settings
    return terms


def _line(plan: Plan, label: str, verdict: Verdict, device: Device, ahead: Terms, paces: Paces) -> dict[str, Any]:
    planned, execution = plan[label], plan.recipe.execution
    terms = ahead._replace(seed=derive_seed(planned.seed, planned.uses))
    estimate = planned.stage.estimate(terms)
    needed = estimate.memory.total if estimate.memory else None
    is_bound = planned.stage.rows_are_bound(terms)
    elsewhere = device.kind == "cuda" and not planned.stage.computes()  # in main memory, whatever the GPU has
    fits = None if needed is None or elsewhere else device.fits(needed) or (None if is_bound else False)
    return {
        "name": label, "uses": planned.uses, "key": planned.key, "cached": verdict.cached,
        "reason": "; ".join(filter(None, [verdict.reason, verdict.drift])),
        "parameters": estimate.parameters, "trainable": estimate.trainable,
        "memory_bytes": needed, "memory_is_bound": is_bound,
        "steps": estimate.steps, "steps_is_bound": estimate.steps_is_bound,
        "memory": estimate.memory.parts() if estimate.memory else None,
        "tokens": estimate.tokens, "tokens_is_bound": estimate.tokens_is_bound,
        "disk_bytes": planned.stage.disk_bytes(), "fits": fits,
        "micro_batch": planned.stage.micro_batch(execution),
        "largest_micro_batch": None if needed is None else largest_micro_batch(planned.stage, terms, device),
        "seconds_estimate": paces.seconds(planned.uses, planned.stage, estimate.tokens),
    }  # fmt: skip


def _why(plan: Plan, found: Mapping[str, Verdict], label: str) -> int:
    if label not in found:
        raise UserError(f"--why: no stage is named {label!r}" + did_you_mean(label, found))
    verdict = found[label]
    print(f"{label} ({plan[label].key[:12]}): {'cached' if verdict.cached else 'will run'}")
    for reason in filter(None, [*verdict.reason.split("; "), verdict.drift]):
        print(f"  {reason}")
    return 0
