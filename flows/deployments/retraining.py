"""Retraining: what a recipe makes of today's data, measured beside the champion, and in its place if it is better.

Nothing is trained where there is nothing to decide: the keys of a plan say what data and base are now, and the registry
says what was decided of such a model before.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from artifacts.errors import UserError
from artifacts.store import Store
from flows.addresses import reason
from flows.commands.planning import Wanted, plan_of
from flows.deployments.form_flow import write_recipe
from flows.home import align_home
from flows.registry.decisions import Decision, decided, made_again, now
from flows.registry.promoting import Opponent, promote
from flows.registry.versions import CHAMPION, Versions
from flows.running.stages import run_stages
from flows.tracking.mlflow_server import DIGEST_TAG, MlflowServer
from flows.tracking.tracked_stage import TrackedStage
from pipelines.challenge import Challenger
from pipelines.gate import conditions

GATE = ("win_rate_low>0.5",)
"""Ahead of the champion by more than chance would have it."""


@dataclass(frozen=True)
class Asked:
    """What is to be retrained, and when it takes the champion's place."""

    recipe: Path
    model: str = ""
    """Of the registry; by default the recipe's name."""
    stage: str = ""
    report: str = ""
    must: Sequence[str] = GATE
    overrides: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retrained:
    """What became of it."""

    decision: Decision
    recipe: Path | None = None
    """With the champion in it, as it was run."""
    mlflow_run_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**self.decision.as_dict(), "said": self.decision.said, "recipe": str(self.recipe or "") or None,
                "mlflow_run_id": self.mlflow_run_id}  # fmt: skip


def retrain(asked: Asked) -> Retrained:
    """Called within a flow. Raises UserError for what is wrong with what is asked, StageError if a stage failed."""
    gate = conditions(asked.must, "must")
    store = Store(align_home())
    plan = plan_of(Wanted(asked.recipe, asked.overrides, asked.execution), store)
    challenger = Challenger.of(plan, asked.stage, asked.report)
    server = MlflowServer.reach(store.home)
    versions = Versions(server, asked.model or plan.recipe.name)
    with server.answering():
        champion = versions.at(CHAMPION)
        question = challenger.question(_bytes(champion), gate)
        if (known := decided(versions, champion, challenger.model.key, question)) is not None:
            return Retrained(known)
    if problems := challenger.gate_problems(gate, champion=champion is not None):
        raise UserError("\n".join(f"must: {versions.name}: {problem}" for problem in problems))
    run, path, over = _measured(asked, challenger, champion, versions.name)
    return Retrained(_decide(asked, challenger, versions, champion, over, run, question), path, run["mlflow_run_id"])


def _measured(
    asked: Asked, challenger: Challenger, champion: ModelVersion | None, model: str
) -> tuple[dict[str, Any], Path, Opponent]:
    """A run in which both were evaluated; with its recipe, and the champion as it was measured there."""
    source = f"models:/{model}/{champion.version}" if champion is not None else None
    challenge, wanted = challenger.recipe(source), (challenger.model.label, challenger.report.label)
    remark = f"{asked.recipe}, measured beside {source or 'no champion yet'}."
    path = write_recipe(f"retrain-{asked.recipe.stem}", challenge.only(*wanted), remark)
    try:
        run = run_stages(Wanted(path, from_form=True))
    except UserError as error:
        if champion is not None and re.search(rf"\b{challenge.champion}[.:]", str(error)):
            _refuse(champion, challenger, error)
        raise
    if champion is None:
        return run, path, Opponent(None)
    return run, path, Opponent(str(champion.version), f"{run['run_id']}:{challenge.eval_champion}")


def _bytes(champion: ModelVersion | None) -> str | None:
    """What tells it from others; one that we did not register is told by its number."""
    return str(champion.tags.get(DIGEST_TAG) or f"version {champion.version}") if champion is not None else None


def _refuse(champion: ModelVersion, challenger: Challenger, error: UserError) -> None:
    """A champion from another base may not fit what this recipe makes: raise a UserError that says what to do."""
    lineage = json.loads(champion.tags.get("align.lineage", "[]"))
    if challenger.base.key not in {stage["key"] for stage in lineage}:
        raise UserError(
            f"{champion.name} version {champion.version}, the champion, is not from the base that this recipe trains, "
            f"and could not be fetched to be measured beside it: {error}; if it is of another kind, give `model` "
            "another name, or promote a model of this base by hand"
        ) from error


def _deliver(server: MlflowServer, stage: TrackedStage, parent: str | None) -> None:
    """See that the server has the challenger's files, which the registry wants: to send a large model may take longer
    than its run waits for that. Raises UserError where the server does not take them."""
    try:
        while not stage.send(server, parent, "FINISHED"):  # its run is sending them
            time.sleep(1)
    except Exception as error:  # stores share no kind of error
        raise UserError(f"{stage.result.name}: MLflow at {server.shown} does not take it: {reason(error)}") from error


def _decide(
    asked: Asked, challenger: Challenger, versions: Versions, champion: ModelVersion | None, over: Opponent,
    run: Mapping[str, Any], question: str,
) -> Decision:  # fmt: skip
    """Put it through the gate, and remember what came of it."""
    run_id, label, key = run["run_id"], challenger.model.label, challenger.model.key
    digest = next(stage["digest"] for stage in run["stages"] if stage["name"] == label)
    if champion is not None and champion.tags.get(DIGEST_TAG) == digest:
        with versions.server.answering():
            decision = made_again(versions, champion, key, run_id)
            decision.remember(versions, str(champion.version), question)
        return decision
    _deliver(versions.server, TrackedStage(Store(align_home()), challenger.model.uses, key), run["mlflow_run_id"])
    done = promote(f"{run_id}:{label}", CHAMPION, name=versions.name, must=asked.must,
                   report=f"{run_id}:{challenger.report.label}", over=over)  # fmt: skip
    assert done.version is not None  # with an opponent it is a version either way
    decision = Decision("promoted" if done.promoted else "kept", versions.name, key, done.version, done.champion,
                        done.previous, now(), done.conditions, run_id)  # fmt: skip
    with versions.server.answering():
        decision.remember(versions, done.version, question)
    return decision
