"""The flow that runs any recipe, as cached Prefect tasks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flows.before_prefect  # noqa: F401
from flows.home import align_home
from flows.servers.state import use_servers

if __name__ == "__main__":
    use_servers(align_home())

# isort: split
from flows.commands.planning import Wanted
from flows.deployments.form_fields import Shown
from flows.deployments.form_flow import form_flow
from flows.running.ephemeral import keep_from_ctrl_c
from flows.running.stages import run_stages
from pipelines.sweep import MOST_BRANCHES

FIELDS = [
    Shown("recipe", str, "pipelines/quickstart.yaml", "Recipe", "Its path, where the run's code is."),
    Shown("overrides", dict[str, Any], {}, "Other settings", 'By stage and field, such as {"dpo.beta": 0.2}.'),
    Shown("sweep", dict[str, list[Any]], {}, "Sweep",
          'Fields with several values, such as {"dpo.beta": [0.1, 0.3]}: a branch for each, compared at the end.'),
    Shown("max_branches", int, MOST_BRANCHES, "Most branches", "A sweep of more is refused."),
    Shown("execution", dict[str, Any], {}, "How to run",
          'Such as {"threads": 2, "device": "cuda"}; no part of any key.'),
    Shown("jobs", int, 1, "Stages at a time", "So many may run side by side, where neither needs the other."),
    Shown("refresh", list[str], [], "Make afresh",
          "Stages to make again though they are cached; what follows from them is made anew too."),
    Shown("until", str, "", "Where to stop", "After this stage. Empty: at the end."),
    Shown("strict_env", bool, False, "Versions of libraries count",
          "They become part of every stage's identity, so that another version makes everything anew."),
    Shown("offline_tracking", bool, False, "Without MLflow", "Nothing is sent now; `align sync` sends it later."),
]  # fmt: skip


def _run(given: dict[str, Any]) -> dict[str, Any]:
    wanted = Wanted(
        Path(given["recipe"]), given["overrides"], given["execution"], given["sweep"], given["max_branches"],
        until=given["until"] or None, strict_env=given["strict_env"], refresh=tuple(given["refresh"]),
    )  # fmt: skip
    return run_stages(wanted, jobs=given["jobs"], offline_tracking=given["offline_tracking"])


TEXT = "Run a recipe's stages in order, each from the cache if nothing that it depends on has changed."
align = form_flow("align", TEXT, FIELDS, _run, __name__)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    keep_from_ctrl_c()
    align()
