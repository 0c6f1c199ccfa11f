"""Prefect and MLflow as people see them: a real server, its API, and the tracking database."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.servers import free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def served(another_beta):
    """A run against the server, in which dpo and what follows is made."""
    return another_beta.json


def test_the_flow_run_with_its_parameters_and_tasks_is_in_prefect(served, prefect):
    run = prefect.call(f"/flow_runs/{served['flow_run_id']}")
    assert run["state_type"] == "COMPLETED"
    assert run["parameters"]["overrides"] == {"dpo.beta": 0.7}
    where = {"flow_runs": {"id": {"any_": [served["flow_run_id"]]}}}
    tasks = prefect.call("/task_runs/filter", where)
    states = {task["name"].rsplit("-", 1)[0]: task["state_name"] for task in tasks}
    assert states["dpo"] == "Completed" and states["eval_dpo"] == "Completed"
    assert set(states) == {stage["name"] for stage in served["stages"]}


def test_a_stage_made_before_is_cached_in_prefect_too(again, prefect):
    where = {"flow_runs": {"id": {"any_": [again.json["flow_run_id"]]}}}
    tasks = prefect.call("/task_runs/filter", where)
    assert {task["state_name"] for task in tasks} == {"Cached"}


def test_logs_plan_progress_report_and_charts_are_in_prefect(served, prefect):
    logs = prefect.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [served["flow_run_id"]]}}})
    assert any("trains" in log["message"] and "dpo" in log["message"] for log in logs)
    found = prefect.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [served["flow_run_id"]]}}})
    shown = {artifact["key"]: artifact["data"] for artifact in found}
    report = shown["report"]
    assert served["run_id"] in report and "| dpo | ran |" in report and "](http" in report
    assert {"plan", "progress-dpo", "progress-eval-dpo"} <= set(shown)
    assert all(shown[name].startswith("data:image/png;base64,") for name in ("comparison", "frontier"))


@pytest.fixture
def tracking(shop):
    return MlflowClient(f"sqlite:///{shop.home / 'mlflow.db'}")


def test_the_parent_run_carries_headlines_recipe_plan_and_comparison(first, tracking):
    parent = tracking.get_run(first.json["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["eval/check_rate"] == first.stage("eval_ppo")["metrics"]["eval/check_rate"]
    assert parent.data.metrics["eval_sft/check_rate"] == first.stage("eval_sft")["metrics"]["eval/check_rate"]
    files = {file.path for file in tracking.list_artifacts(parent.info.run_id)}
    assert {"tiny.yaml", "plan.json", "comparison.md", "comparison.html", "comparison.png", "frontier.png"} <= files
    assert {dataset.dataset.name for dataset in parent.inputs.dataset_inputs} >= {"pairs.source", "pairs.test_source"}


def test_a_stage_that_ran_is_a_child_with_parameters_points_and_hard_linked_files(first, tracking):
    stage = first.stage("dpo")
    run = tracking.get_run(stage["mlflow_run_id"])
    assert run.data.tags["mlflow.parentRunId"] == first.json["mlflow_run_id"]
    assert run.data.params["beta"] == "0.1" and run.data.tags["align.key"] == stage["key"]
    points = tracking.get_metric_history(run.info.run_id, "train/loss")
    assert sorted({point.step for point in points}) == [8, 16, 24, 32, 40, 48, 56, 64]
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    adapter = root / "output" / "adapter_model.safetensors"
    assert adapter.samefile(Path(stage["path"]) / adapter.name)
    names = {path.path for path in tracking.list_artifacts(run.info.run_id, "checkpoints")}
    assert names == {"checkpoints/checkpoint-4", "checkpoints/checkpoint-8"}
    assert (root / "stage" / "manifest.json").exists()


def test_ppo_shows_its_curves_its_samples_and_its_alarms(first, tracking):
    run = tracking.get_run(first.stage("ppo")["mlflow_run_id"])
    names = {path.path for path in tracking.list_artifacts(run.info.run_id)}
    assert {"curves.png", "samples.json", "output", "stage", "checkpoints"} <= names
    assert {"path": "samples.json", "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
    points = tracking.get_metric_history(run.info.run_id, "objective/kl")
    assert [point.step for point in points] == [16, 32, 48, 64] and points[0].value == 0.0
    assert run.data.tags["align.alarm.truncated"] == "rang"  # a model that has learned nothing never stops


def test_sft_and_dpo_share_metric_names_and_the_axis(first, tracking):
    runs = [tracking.get_run(first.stage(name)["mlflow_run_id"]) for name in ("sft", "dpo")]
    shared = set(runs[0].data.metrics) & set(runs[1].data.metrics)
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second", "cost/tokens"} <= shared


def test_a_cached_stage_is_linked_and_not_logged_again(first, served, tracking):
    keys = {stage["name"]: stage["mlflow_run_id"] for stage in served["stages"]}
    assert keys["sft"] == first.stage("sft")["mlflow_run_id"]
    parent = tracking.get_run(served["mlflow_run_id"])
    assert parent.data.tags["align.stage.sft"] == keys["sft"]
    children = tracking.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {"dpo", "merge", "eval_dpo"}


def test_an_mlflow_that_does_not_answer_is_an_error_in_seconds(first, shop):
    started = time.monotonic()
    answer = shop.align("run", "pipelines/tiny.yaml", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert answer.status == 2 and "MLflow" in answer.err and "can't be used" in answer.err
    assert time.monotonic() - started < 60
