"""The few parameters and figures by which MLflow's tables of runs are read: the same names on a pipeline run and on its
stages, so that one column serves for both.

    method   what was trained, by `uses`: `sft, reward, dpo`; of an evaluation, what trained its policy
    policy   the stage whose policy was evaluated, `dpo@beta=0.2`; of a pipeline run, the one that `eval/*` are of
    base     what the base model is; data: the files that the rows are from; changes: what differs from the recipe
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.kinds import Adapter, Checkpoint, Dataset, Quantized, Report
from flows.records import RunRecord
from pipelines.comparison.lineage import MEMORY, SECONDS, TOKENS
from pipelines.plan import Plan, Planned
from tasks.settings import Optimizing

MODELS = (Adapter, Checkpoint, Quantized)


def run_params(plan: Plan, changes: str) -> dict[str, Any]:
    """Of a pipeline run, known before it begins."""
    trained = dict.fromkeys(planned.uses for planned in plan.stages if isinstance(planned.stage, Optimizing))
    return {
        "method": ", ".join(trained), **_origins(plan.stages), "changes": changes, "seed": plan.recipe.seed,
        "stages": ", ".join(planned.label for planned in plan.stages),
    }  # fmt: skip


def stage_params(planned: Planned, plan: Plan) -> dict[str, Any]:
    """Of a stage, beside its own settings."""
    by_key = {each.key: each for each in plan.stages}
    found = {**_origins(_chain(planned, by_key)), "seed": planned.seed, "uses": planned.uses}
    policy = by_key.get(planned.payload["inputs"]["policy"]) if isinstance(planned.handle, Report) else planned
    if policy is None:
        return found
    trained = _trained(policy, by_key)
    if policy is not planned:
        found["policy"] = (trained or policy).label
    if trained is not None or policy is not planned:
        found["method"] = (trained or policy).uses
    return found


def _chain(planned: Planned, by_key: Mapping[str, Planned]) -> list[Planned]:
    """A stage and all that it needs."""
    found = {planned.key: planned}
    todo = [planned]
    while todo:
        for key in todo.pop(0).payload["inputs"].values():
            if key in by_key and key not in found:
                found[key] = by_key[key]
                todo.append(by_key[key])
    return list(found.values())


def _trained(planned: Planned | None, by_key: Mapping[str, Planned]) -> Planned | None:
    """What trained a policy: itself, or what it only carries on; None for one that was not trained in this plan."""
    while planned is not None and not isinstance(planned.stage, Optimizing):
        carried = [artifact.key for artifact in planned.stage.bound().values() if isinstance(artifact, MODELS)]
        planned = by_key.get(carried[0]) if len(carried) == 1 else None
    return planned


def _origins(stages: Iterable[Planned]) -> dict[str, str]:
    """Base models and data, as they are named; files without their folders."""
    bases: dict[str, None] = {}
    data: dict[str, None] = {}
    for planned in stages:
        source = planned.stage.settings().get("source")
        if source is None:
            continue
        name = Path(str(source)).name if Path(str(source)).is_absolute() else str(source)
        if isinstance(planned.handle, Dataset):
            data[name] = None
        elif isinstance(planned.handle, Checkpoint) and not planned.needs:
            bases[name] = None
    return {"base": ", ".join(bases), "data": ", ".join(sorted(data))}


def run_figures(record: RunRecord) -> dict[str, float]:
    """`eval/*` of the last policy, of each as `<stage>/*`, and so of each judge, since MLflow folds child runs away;
    and what all the stages cost, cached ones too, so that runs can be compared: the run's own time is its duration."""
    found: dict[str, float] = {}
    for stage in record.stages:
        evaluated = {name: value for name, value in stage["metrics"].items() if name.startswith("eval/")}
        if stage["name"] in record.reports:
            found |= evaluated
            found |= {f"{stage['name']}/{name.removeprefix('eval/')}": value for name, value in evaluated.items()}
        judged = {name: value for name, value in stage["metrics"].items() if name.startswith("judge/")}
        found |= {f"{stage['name']}/{name.removeprefix('judge/')}": value for name, value in judged.items()}
    return found | _costs(record.stages)


def _costs(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds and tokens of all, and the most memory of any."""
    found: dict[str, float] = {}
    for name in (SECONDS, TOKENS, MEMORY):
        values = [stage["metrics"][name] for stage in stages if name in stage["metrics"]]
        if values:
            found[name] = max(values) if name == MEMORY else sum(values)
    return found
