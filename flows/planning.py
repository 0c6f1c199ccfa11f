"""Plans, and `align plan`: for each stage whether it is cached or why not, parameters, memory, steps. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def plan_of(
    recipe: Path, overrides: Mapping[str, Any] | None, execution: Mapping[str, Any] | None, store: Store, *,
    until: str | None, strict_env: bool,
) -> Plan:  # fmt: skip
    """The plan of a recipe; raises UserError for all that is wrong with it."""
    loaded = fetched(load_recipe(recipe, overrides, execution), store.home)
    return make_plan(loaded, store, strict_env=strict_env).until(until)


def show_plan(
    recipe: Path, overrides: Mapping[str, Any], execution: Mapping[str, Any], *,
    until: str | None, strict_env: bool, as_json: bool, why: str | None,
) -> int:  # fmt: skip
    """Print the plan; changes nothing but the memory of file digests and what is fetched."""
    store = Store(align_home())
    plan = plan_of(recipe, overrides, execution, store, until=until, strict_env=strict_env)
    found = verdicts(plan, store)
    if why is not None:
        return _why(plan, found, why)
    stages = [_line(plan, label, verdict) for label, verdict in found.items()]
    if as_json:
        print(json.dumps({"recipe": str(recipe), "stages": stages}))
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
        "memory_bytes": estimate.memory_bytes, "steps": estimate.steps,
    }  # fmt: skip


def _why(plan: Plan, found: Mapping[str, Verdict], label: str) -> int:
    if label not in found:
        raise UserError(f"--why: no stage is named {label!r}" + did_you_mean(label, found))
    verdict = found[label]
    print(f"{label} ({plan[label].key[:12]}): {'cached' if verdict.cached else 'will run'}")
    for reason in filter(None, [*verdict.reason.split("; "), verdict.drift]):
        print(f"  {reason}")
    return 0
