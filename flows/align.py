"""The flow that runs any recipe, as cached Prefect tasks; and what every flow needs before Prefect is imported."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.home import align_home, prepare_services
from flows.servers.state import use_servers

prepare_services(align_home())
with suppress(OSError):  # whoever may not write there is told so later, and better
    align_home().mkdir(parents=True, exist_ok=True)  # Prefect's own server has its database there
if __name__ == "__main__":
    use_servers(align_home())

from prefect import State, flow  # noqa: E402

from flows.commands.planning import Wanted  # noqa: E402
from flows.running.ephemeral import keep_from_ctrl_c  # noqa: E402
from flows.running.stages import answer, run_stages  # noqa: E402
from pipelines.sweep import MOST_BRANCHES  # noqa: E402


@flow(name="align", validate_parameters=True, persist_result=False)
def align(
    recipe: str = "pipelines/quickstart.yaml",
    overrides: dict[str, Any] | None = None,
    execution: dict[str, Any] | None = None,
    until: str | None = None,
    strict_env: bool = False,
    offline_tracking: bool = False,
    sweep: dict[str, list[Any]] | None = None,
    max_branches: int = MOST_BRANCHES,
    jobs: int = 1,
    refresh: list[str] | None = None,
) -> dict[str, Any] | State[Any]:
    """Run a recipe's stages in order, each from the cache if nothing that it depends on has changed.

    Args:
        recipe: Path of the recipe.
        overrides: Fields that differ from the recipe, such as {"dpo.beta": 0.2}.
        execution: How to run, such as {"threads": 2}; never changes a result.
        until: Stop after this stage.
        strict_env: Let library versions count as part of every stage's identity.
        offline_tracking: Do not talk to MLflow now; `align sync` sends everything later.
        sweep: Fields with several values, such as {"dpo.beta": [0.1, 0.3]}: one branch for each.
        max_branches: More are refused.
        jobs: How many stages may run at the same time.
        refresh: Stages to make afresh, though they are cached; what follows from them is made anew too.
    """
    wanted = Wanted(
        Path(recipe), overrides or {}, execution or {}, sweep or {}, max_branches, until=until, strict_env=strict_env,
        refresh=tuple(refresh or ()),
    )  # fmt: skip
    return answer(lambda: run_stages(wanted, jobs=jobs, offline_tracking=offline_tracking))


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    keep_from_ctrl_c()
    align()
