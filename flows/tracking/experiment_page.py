"""An experiment's page in MLflow: its description, and saved views with the columns and charts that matter.

MLflow's own table begins with none of our figures. Its pages keep views as tags of the experiment, each JSON with the
state of the table and of the charts; they are listed under `Views`, and have an address.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from mlflow.tracking import MlflowClient

SHARED = "mlflow.sharedViewState."
MARK = "align.views"
MADE = "1"
"""Raised when the views change, so that experiments made before get the new ones."""
RUNS, POLICIES, TRAINING = "align-runs", "align-policies", "align-training"
EVAL = ("check_rate", "win_rate", "score_mean", "preference_accuracy", "kl_to_reference", "length_mean")
COST = ("cost/seconds", "cost/tokens")
CURVES = (
    "train/loss", "validation/loss", "rewards/accuracies", "rewards/margins", "objective/scores", "objective/kl",
    "completions/mean_length", "train/grad_norm", "train/learning_rate", "train/tokens_per_second",
)  # fmt: skip
SECTION = "align"
FIRST = ("attributes.`Run Name`", "runDateAndNestInfo", "duration")
"""What MLflow's table always begins with, as it names these columns."""
WIDTHS = {
    "attributes.`Run Name`": 270, "params.`changes`": 150, "params.`method`": 160, "params.`base`": 140,
    "params.`data`": 240, "metrics.`eval/check_rate`": 120, "metrics.`eval/win_rate`": 115,
    "metrics.`eval/score_mean`": 125, "metrics.`eval/preference_accuracy`": 175, "metrics.`eval/kl_to_reference`": 150,
    "metrics.`eval/length_mean`": 125, "metrics.`rewards/accuracies`": 140, "metrics.`objective/scores`": 130,
}  # fmt: skip
"""In pixels, where the usual 100 are too few."""


def view_page(experiment: str, view: str) -> str:
    """The address of a view, as MLflow's own pages link it; that of the curves shows them as charts."""
    mode = "&compareRunsMode=CHART" if view == TRAINING else ""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view}{mode}"


def furnish(client: MlflowClient, experiment: str) -> None:
    """Give the page its description and views, once: what someone has made of them since stays."""
    tags = client.get_experiment(experiment).tags
    if tags.get(MARK) == MADE:
        return
    now = int(time.time() * 1000)
    for age, (view, (name, state)) in enumerate(_views().items()):  # the newest is listed first
        value = {"name": name, "createdAt": now - age, "updatedAt": now - age, "state": _packed(state)}
        client.set_experiment_tag(experiment, SHARED + view, json.dumps(value))
    if "mlflow.note.content" not in tags:
        client.set_experiment_tag(experiment, "mlflow.note.content", _description(experiment))
    client.set_experiment_tag(experiment, MARK, MADE)


def _packed(state: dict[str, Any]) -> str:
    """As MLflow's pages pack it: a tag of an experiment holds 5000 characters."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _description(experiment: str) -> str:
    links = " · ".join(f"[{name}]({view_page(experiment, view)})" for view, (name, _) in _views().items())
    return (
        f"{links}\n\nA line is a run of the recipe; below it are the stages that this run made. Charts of training are "
        "against samples seen, under the same names for every method."
    )


def _views() -> dict[str, tuple[str, dict[str, Any]]]:
    evaluated = [f"metrics.`eval/{name}`" for name in EVAL]
    cost = [f"metrics.`{name}`" for name in COST]
    learned = [f"metrics.`{name}`" for name in ("train/loss", "rewards/accuracies", "objective/scores", "objective/kl")]
    origin, training = _params("base", "data"), _params("method", "learning_rate", "beta", "seed")
    bars = [f"eval/{name}" for name in EVAL]
    return {
        RUNS: ("Runs of the recipe", _view(
            "tags.`align.kind` = 'pipeline'", "attributes.start_time",
            [*_params("changes", "method", "policy"), *evaluated, *cost, *origin], _charts("BAR", *bars, *COST),
        )),
        POLICIES: ("Policies, evaluated", _view(
            "tags.`align.makes` = 'report'", "params.`policy`",
            [*_params("policy", "method", "seed"), *evaluated, *origin], _charts("BAR", *bars),
        )),
        TRAINING: ("Training curves", _view(
            "tags.`align.trains` = 'yes'", "params.`method`", [*training, *learned, *cost, *origin],
            _charts("LINE", *CURVES),
        )),
    }  # fmt: skip


def _params(*names: str) -> list[str]:
    return [f"params.`{name}`" for name in names]


def _view(wanted: str, order: str, columns: Sequence[str], charts: Sequence[Any]) -> dict[str, Any]:
    """The state of MLflow's page. Any order but by time puts child runs beside their parents instead of below them."""
    shown = [*columns, "attributes.`Models`"]
    return {
        "searchFilter": wanted, "orderByKey": order, "orderByAsc": order != "attributes.start_time",
        "selectedColumns": shown, "columnOrder": [*FIRST, *shown],
        "columnWidths": {name: width for name, width in WIDTHS.items() if name in (*FIRST, *shown)},
        "runsHiddenMode": "FIRST_20_RUNS", "compareRunCharts": charts, "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": SECTION, "name": "side by side", "display": True, "isReordered": False, "deleted": False,
             "isGenerated": False},
        ],
    }  # fmt: skip


def _charts(kind: str, *metrics: str) -> list[dict[str, Any]]:
    return [_chart(kind, metric) for metric in metrics]


def _chart(kind: str, metric: str) -> dict[str, Any]:
    line = {
        "selectedMetricKeys": [metric], "xAxisKey": "step", "useGlobalXaxisKey": True, "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
    }  # fmt: skip
    return {
        "uuid": f"{SECTION}-{metric}", "type": kind, "metricKey": metric, "displayName": metric,
        "metricSectionId": SECTION, "runsCountToCompare": 20, "deleted": False, "isGenerated": True,
        **(line if kind == "LINE" else {}),
    }  # fmt: skip
