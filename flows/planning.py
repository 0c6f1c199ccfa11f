"""Plans, and `align plan`: for each stage whether it is cached or why not, parameters, memory, steps. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.store import Store
from flows.fetching import fetched
from flows.home import align_home
from flows.tables import plan_table
from pipelines.plan import Plan, make_plan
from pipelines.problems import did_you_mean
from pipelines.reasons import Verdict, verdicts
from pipelines.recipe import load_recipe
from pipelines.sweep import MOST_BRANCHES, Sweep


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


def plan_of(wanted: Wanted, store: Store) -> Plan:
    """The plan of a recipe; raises UserError for all that is wrong with it."""
    recipe = load_recipe(wanted.recipe, wanted.overrides, wanted.execution, wanted.sweep, wanted.max_branches)
    return make_plan(fetched(recipe, store.home), store, strict_env=wanted.strict_env).until(wanted.until)


def show_plan(wanted: Wanted, *, as_json: bool, why: str | None) -> int:
    """Print the plan; changes nothing but the memory of file digests and what is fetched."""
    store = Store(align_home())
    plan = plan_of(wanted, store)
    found = verdicts(plan, store)
    if why is not None:
        return _why(plan, found, why)
    stages = [_line(plan, label, verdict) for label, verdict in found.items()]
    if as_json:
        print(json.dumps({"recipe": str(wanted.recipe), "stages": stages}))
    else:
        print(plan_table(stages))
    return 0


def _line(plan: Plan, label: str, verdict: Verdict) -> dict[str, Any]:
    planned = plan[label]
    estimate = planned.stage.estimate()
    return {
        "name": label, "uses": planned.uses, "key": planned.key, "cached": verdict.cached,
        "reason": "; ".join(filter(None, [verdict.reason, verdict.drift])),
        "parameters": estimate.parameters, "trainable": estimate.trainable,
        "memory_bytes": estimate.memory.total if estimate.memory else None, "steps": estimate.steps,
    }  # fmt: skip


def _why(plan: Plan, found: Mapping[str, Verdict], label: str) -> int:
    if label not in found:
        raise UserError(f"--why: no stage is named {label!r}" + did_you_mean(label, found))
    verdict = found[label]
    print(f"{label} ({plan[label].key[:12]}): {'cached' if verdict.cached else 'will run'}")
    for reason in filter(None, [*verdict.reason.split("; "), verdict.drift]):
        print(f"  {reason}")
    return 0
