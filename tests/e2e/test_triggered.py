"""Forms of Prefect's pages, as these send them: what is run and shown, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from urllib.error import HTTPError

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.conftest import ROOT
from tests.e2e.servers import eventually
from tests.e2e.up import TINY, Up

pytestmark = pytest.mark.e2e
LOG = logging.getLogger("triggered")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("triggered"))
    yield up
    up.end()


def test_a_form_of_prefects_page_is_run_and_its_page_shows_plan_progress_and_report(up):
    assert up.shop.align("run", TINY, "--until", "base").status == 0
    form = {"base": "builtin:tiny-llama", "until": "instructions", "overrides": {"instructions.limit": 64}}
    flow_run = up.trigger("align-sft", **form)
    eventually(lambda: up.flow_run(flow_run)["state_name"] == "Completed", 120)
    record = next(one for one in up.shop.align("runs", "--json").json if one["flow_run_id"] == flow_run)
    assert {stage["name"]: stage["status"] for stage in record["stages"]} == {"base": "cached", "instructions": "ran"}
    assert MlflowClient(up.first.json["mlflow"]["url"]).get_run(record["mlflow_run_id"]).info.status == "FINISHED"
    shown = up.shown(flow_run)
    assert {"plan", "progress-instructions", "report", "mlflow"} <= set(shown)
    pages = f"{up.first.json['mlflow']['url']}/#/runs"
    base, instructions = record["stages"]
    assert json.loads(shown["plan"]) == [
        {"stage": "base", "does": "base", "plan": "cached", "why": "", "key": base["key"][:12],
         "MLflow": f"{pages}/{base['mlflow_run_id']}"},
        {"stage": "instructions", "does": "data", "plan": "runs", "why": "never run",
         "key": instructions["key"][:12], "MLflow": ""},
    ]  # fmt: skip
    assert shown["progress-instructions"] == 100.0 and "| instructions | ran |" in shown["report"]
    assert f"({pages}/{record['mlflow_run_id']})" in shown["mlflow"]
    for stage in record["stages"]:
        assert f"[{stage['name']}]({pages}/{stage['mlflow_run_id']})" in shown["report"]


def test_a_form_with_something_wrong_in_it_fails_at_once_in_the_words_of_the_command_line_alone(up):
    wrong = {"dpo.bta": 0.2, "dpo.beta": -1, "dpo.policy": "stf"}
    runs = {name: up.trigger("align-dpo", overrides={name: value}) for name, value in wrong.items()}
    for name, flow_run in runs.items():
        eventually(lambda flow_run=flow_run: up.flow_run(flow_run)["state_name"] == "Failed", 120)
        plan = up.shop.align("plan", TINY, f"{name}={wrong[name]}")
        said = plan.err.strip().removeprefix(f"error: {TINY}: ")
        assert plan.status == 2 and said.startswith(f"{name}: ")
        assert up.flow_run(flow_run)["state"]["message"].endswith(f".yaml: {said}")
        seconds = up.between(flow_run, "Running", "Failed")
        assert seconds < 2.0  # one, on a machine that does nothing else
        LOG.info("%s=%s is told %.2f s after the run began", name, wrong[name], seconds)
        logged = up.logged(flow_run)  # by then: its page no longer looks for more
        assert said in logged and "Traceback" not in logged


def test_a_value_out_of_its_range_is_refused_when_the_form_is_sent(up):
    with pytest.raises(HTTPError) as refused:
        up.trigger("align-dpo", beta=-1)
    assert refused.value.code in (409, 422) and "beta" in refused.value.read().decode()


def test_the_deployment_reads_nothing_but_what_ships_unless_it_was_told(up):
    asked = (
        {"recipe": "/etc/passwd"},
        {"overrides": {"instructions.source": "/etc/gone"}},
        {"overrides": {"name": "../x"}},
    )
    runs = [up.trigger("align", **{"recipe": TINY, **parameters}) for parameters in asked]
    for flow_run in runs:
        eventually(lambda flow_run=flow_run: up.flow_run(flow_run)["state_name"] == "Failed", 120)
    said = [up.flow_run(flow_run)["state"]["message"] for flow_run in runs]
    assert f"recipe: wanted something in {ROOT}/pipelines, got '/etc/passwd'" in said[0]
    assert f"instructions.source: wanted something in {ROOT}/pipelines, got '/etc/gone'" in said[1]
    assert "name: wanted at most 160 bytes of text in one line, without /" in said[2]
