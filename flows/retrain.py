"""The flow `align-retrain`: for schedules, and for the event that data has changed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

import flows.before_prefect  # noqa: F401

# isort: split
from prefect import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.deployments.form_fields import Shown
from flows.deployments.form_flow import form_flow
from flows.deployments.retraining import GATE, Asked, Retrained, retrain
from flows.links import mlflow_page, mlflow_server
from flows.running.run_page import show_decision
from flows.running.watch import watcher
from pipelines.comparison.markdown_text import inert

FIELDS = [
    Shown("recipe", str, "pipelines/quickstart.yaml", "Recipe",
          "Data and base are what its files hold, and its names stand for, when this runs."),
    Shown("model", str, "", "Registered model", "Whose champion is challenged. Empty: the recipe's name."),
    Shown("stage", str, "", "Challenger",
          "The stage that makes the complete model, such as merge. Empty: the last that makes one."),
    Shown("report", str, "", "Report", "The evaluate stage that measures it. Empty: the only one that does."),
    Shown("must", list[str], list(GATE), "Gate",
          "Conditions on its figures, such as win_rate_low>0.5 (wins over the champion), check_rate>=champion-0.02."),
    Shown("overrides", dict[str, Any], {}, "Other settings", 'By stage and field, such as {"sft.epochs": 3}.'),
    Shown("execution", dict[str, Any], {}, "How to run",
          'Such as {"threads": 2, "device": "cuda"}; no part of any key.'),
]  # fmt: skip


def _run(given: dict[str, Any]) -> State[dict[str, Any]]:
    """Green under a name that says what became of it: Promoted, Kept or Unchanged."""
    done = retrain(Asked(**{**given, "recipe": Path(given["recipe"])}))
    watcher().decision = done.as_dict()
    said = done.decision.said
    get_run_logger().info(said)
    show_decision(page(done), said)
    return Completed(name=done.decision.outcome.capitalize(), message=said, data=done.as_dict())


def page(done: Retrained) -> str:
    """What was decided, in Markdown: the gate with its figures, and where to look next."""
    decision = done.decision
    lines = [f"# {inert(decision.said)}", ""]
    if decision.conditions:
        lines += ["| condition | wanted | got | |", "|---|---|---|---|"]
    for one in decision.conditions:
        wanted = "no champion yet" if one["wanted"] is None else f"{one['wanted']:.4g}"
        lines.append(
            f"| `{one['condition']}` | {wanted} | {one['got']:.4g} | {'passed' if one['passed'] else 'FAILED'} |"
        )
    lines.append("")
    address = mlflow_server()
    versions = {decision.version: "the challenger", decision.champion: "the champion"}  # which may be one
    for number, what in versions.items():
        if number is not None:
            said = f"{what}: {inert(decision.model)} version {number}"
            link = f"{address}/#/models/{quote(decision.model, safe='')}/versions/{number}"
            lines.append(f"- [{said}]({link})" if address else f"- {said}")
    if (run := mlflow_page(done.mlflow_run_id)) is not None:
        lines.append(f"- [run {decision.run_id}]({run})")
    if done.recipe is not None:
        lines.append(f"- by hand: `align run {done.recipe}`")
    if decision.outcome == "promoted" and decision.previous is not None:
        lines.append(f"- back to the champion before: `align rollback --name {shlex.quote(decision.model)}`")
    return "\n".join(lines)


TEXT = "Train a recipe anew if data or base changed, and let it take the champion's place if it passes the gate."
align_retrain = form_flow("align-retrain", TEXT, FIELDS, _run, __name__)
