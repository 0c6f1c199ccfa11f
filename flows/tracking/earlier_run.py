"""A pipeline run of another machine, as MLflow has it: a pod's home, say, is empty each time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from flows.addresses import reason
from flows.home import aside
from flows.tracking.mlflow_server import MlflowServer

NAME = re.compile(r"[\w.@+-]+")
"""What a run or a flow run can be called."""
FLOW_RUN_TAG = "prefect.flow_run_id"
RECIPE_TAG, FOLDER_TAG = "align.recipe_file", "align.recipe_folder"
"""Where the recipe was, as it was named; and its folder, where that really is."""


@dataclass(frozen=True)
class EarlierRun:
    """What is known of one."""

    tags: dict[str, str]
    content: Any
    """Of the JSON file that was asked for."""


def begun_elsewhere(home: Path, flow_run_id: str) -> str | None:
    """The id of the run that another machine began for a flow run. Raises UserError if MLflow can't be asked."""
    server = MlflowServer.reach(home)
    if server.is_own:
        return None
    with server.answering():
        experiments = [each.experiment_id for each in server.client.search_experiments()]
        wanted = f"tags.`{FLOW_RUN_TAG}` = '{flow_run_id}' and tags.`align.kind` = 'pipeline'"
        found = server.client.search_runs(experiments, wanted, max_results=1)
    return str(found[0].data.tags["align.run_id"]) if found else None


def earlier_run(home: Path, tags: Sequence[str], value: str, file: str) -> EarlierRun | None:
    """The newest run in which one of `tags` has this value, with one of its files.

    None if there is none, or no server but this home's own. Raises UserError if it can't be asked.
    """
    server = MlflowServer.reach(home)
    if server.is_own or not NAME.fullmatch(value):
        return None
    try:
        experiments = [each.experiment_id for each in server.client.search_experiments()]
        for tag in tags:
            wanted = f"tags.`{tag}` = '{value}' and tags.`align.kind` = 'pipeline'"
            for run in server.client.search_runs(experiments, wanted, max_results=1):
                with aside(home) as part:
                    kept = Path(server.client.download_artifacts(run.info.run_id, file, str(part)))
                    return EarlierRun(dict(run.data.tags), json.loads(kept.read_text()))
    except Exception as error:  # botocore's, a library that is not there: stores share no kind of error
        raise UserError(f"{value}: MLflow at {server.shown} does not give its {file}: {reason(error)}") from error
    return None
