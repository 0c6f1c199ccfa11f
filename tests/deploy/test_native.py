"""A team's deployment, for real but for containers: made, triggered, killed, stopped, gone on with, refused."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from flows.deployments.deployed import code_version
from tests.deploy.native import ENVIRONMENT, PATIENCE_S, Native, eventually
from tests.deploy.seen import (
    LOG,
    WORDS,
    align,
    asking,
    deployment,
    logs,
    reaches,
    result,
    retry,
    saved,
    sft_run,
    state,
    stop_amid_sft,
    stopped_amid_sft,
    stored,
    trigger,
)
from tests.e2e.conftest import ROOT, Shop

pytestmark = pytest.mark.deploy
HEARTBEAT_S = "30"  # as often as Prefect lets it: a killed run is Crashed after four that are missing
ON_NEW_DATA = "align: retrain when data changed"
LONG = {"overrides": {"sft.epochs": 32}, "execution": {"save_interval": 20, "threads": 1}}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    team = Native(tmp_path_factory.mktemp("team"))
    for service in team.services.values():
        if "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in service.get("environment", {}):
            service["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = HEARTBEAT_S
    try:
        team.up()
        LOG.info("up: PostgreSQL, object store, MLflow and Prefect with passwords; deployed")
        yield team
    finally:
        team.down()


@pytest.fixture(scope="module")
def tracking(team: Native) -> Iterator[MlflowClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ENVIRONMENT["MLFLOW_ADMIN_USERNAME"])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ENVIRONMENT["MLFLOW_ADMIN_PASSWORD"])
        yield MlflowClient(team.mlflow)


def test_a_worker_dies_and_another_machine_ends_its_run_with_the_same_bytes(team, tracking):
    words = [f"{name}={value}" for name, value in LONG["overrides"].items()]
    words += [word for name, value in LONG["execution"].items() for word in ("--exec", f"{name}={value}")]
    words = ["run", WORDS["recipe"], *words, "--until", WORDS["until"], "--json"]
    undisturbed = Shop(team.folder / "undisturbed").start(*words, **asking(team))
    team.start("worker", "first")
    team.wait("worker", "first")
    flow_run = trigger(team, **LONG)
    LOG.info("triggered through the API")
    trainers = stopped_amid_sft(team, "first")
    checkpoints = eventually(lambda: saved(tracking), "MLflow has a whole checkpoint")
    team.kill("first")
    for each in trainers:
        each.resume()  # to find that its flow is gone
    LOG.info(f"killed the worker and its flow process; MLflow had {checkpoints}")
    assert trainers and result(team.folder / "first/align") is None
    eventually(lambda: not any(each.is_running() for each in trainers), "the trainer is gone", 60)
    assert state(team, flow_run)["name"] == "Running"
    run = sft_run(tracking)
    team.start("worker", "second")
    assert "its process was killed" in reaches(team, flow_run, "Crashed")["message"]
    retry(team, flow_run)
    kept = stop_amid_sft(team, "second")
    assert "its process was killed" not in reaches(team, flow_run, "Crashed")["message"]
    LOG.info(f"stopped the worker, whose run saved {kept}")
    team.start("worker", "second")
    retry(team, flow_run)
    reaches(team, flow_run, "Completed")
    for said in ("goes on from checkpoint-", f"going on from {kept}"):
        eventually(lambda said=said: said in logs(team, flow_run), said, 60)
        LOG.info(next(line for line in logs(team, flow_run).splitlines() if said in line))
    assert sft_run(tracking) == run and tracking.get_run(run).info.status == "FINISHED"
    ended = result(team.folder / "second/align")
    whole = json.loads(undisturbed.communicate(timeout=PATIENCE_S)[0])["stages"][-1]
    assert ended is not None and (whole["name"], whole["digest"]) == ("sft", ended.digest)
    LOG.info(f"digest {ended.digest[:16]} as undisturbed; MLflow run {run} as before")


def test_a_schedule_is_made_by_command_makes_runs_and_outlives_another_deploy(team):
    assert deployment(team)["schedules"] == []
    words = ["deployment", "schedule", "create", "align/align", "--cron", "0 3 * * 0", "--timezone", "UTC"]
    environment = team.environment("deployments", team.folder / "deployments")
    subprocess.run([team.bin / "prefect", *words], env=environment, check=True, timeout=PATIENCE_S)
    (schedule,) = deployment(team)["schedules"]
    waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def made() -> list[dict[str, Any]]:
        return [run for run in team.call("/flow_runs/filter", waiting) if run["auto_scheduled"]]

    runs = eventually(made, "scheduled runs", 300)
    assert {run["deployment_id"] for run in runs} == {deployment(team)["id"]}
    (rule,) = [one for one in team.call("/automations/filter", {}) if one["name"] == ON_NEW_DATA]
    team.call(f"/automations/{rule['id']}", {"enabled": False}, "PATCH")
    team.services["deployments"]["environment"]["ALIGN_RETRAIN_OVERLAP"] = "queue"
    team.once("deployments")
    assert deployment(team)["schedules"] == [schedule] and schedule["active"]
    found = team.call("/automations/filter", {})
    assert [one["enabled"] for one in found if one["name"] == ON_NEW_DATA] == [False]
    retraining = team.call("/deployments/name/align-retrain/align-retrain")
    assert retraining["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert team.call("/work_pools/local")["concurrency_limit"] == 1
    team.call(f"/deployments/{deployment(team)['id']}/schedules/{schedule['id']}", method="DELETE")


def test_a_deployment_that_other_code_made_is_refused_by_name(team):
    assert deployment(team)["version"] == code_version()
    if "second" not in team.running:
        team.start("worker", "second")
    other = "alignflow 0.0.1+000000000000"
    team.call(f"/deployments/{deployment(team)['id']}", {"version": other}, "PATCH")
    flow_run = trigger(team)
    eventually(lambda: state(team, flow_run)["type"] == "FAILED", "the flow run has failed")
    message = state(team, flow_run)["message"]
    LOG.info(message)
    assert f"the deployment was made by {other}, this worker has {code_version()}" in message


def test_no_password_is_in_what_workers_and_servers_write_or_in_databases_and_store(team):
    """A worker has them all in its environment."""
    said = {name: ENVIRONMENT[name] for name in ENVIRONMENT if re.search("PASSWORD|SECRET|AUTH", name)}
    said["as a header"] = base64.b64encode(ENVIRONMENT["PREFECT_AUTH_STRING"].encode()).decode()
    files = [path for name in ("first", "second") for path in (team.folder / name).rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes() for path in [*files, *team.folder.glob("*.log")]}
    databases = {name: team.sql("pg_dump", name) for name in ("prefect", "mlflow")}
    assert (
        b"tiny" in databases["prefect"] and b"sft" in databases["mlflow"]
    )  # flow runs, logs, events; parameters, tags
    objects = dict(stored(team))
    assert len(said) >= 5 and len(files) > 50 and len(objects) > 10
    searched = {**texts, **databases, **objects}
    assert [(where, name) for where, text in searched.items() for name, it in said.items() if it.encode() in text] == []


WRONG = {"PREFECT_API_AUTH_STRING": "team:wrong"}


def test_a_wrong_auth_string_is_named_by_run_and_doctor(team, tmp_path):
    shop = Shop(tmp_path)
    answer = align(shop, "run", "pipelines/tiny.yaml", **asking(team, **WRONG))
    LOG.info((answer.err.splitlines() or [""])[-1])
    assert answer.status == 2 and "PREFECT_API_AUTH_STRING" in answer.err
    found = align(shop, "doctor", **asking(team, **WRONG))
    assert found.status == 1 and "PREFECT_API_AUTH_STRING" in found.out and "does not answer" not in found.out
    right = align(shop, "doctor", **asking(team))
    assert right.status == 0, right.out


def test_a_wrong_password_for_mlflow_is_named_by_run_and_doctor(team, tmp_path):
    shop, name = Shop(tmp_path), ENVIRONMENT["MLFLOW_ADMIN_USERNAME"]
    given = {"MLFLOW_TRACKING_URI": team.mlflow, "MLFLOW_TRACKING_USERNAME": name}
    wrong = {**asking(team), **given, "MLFLOW_TRACKING_PASSWORD": "wrong"}
    answer = align(shop, "run", "pipelines/tiny.yaml", **wrong)
    LOG.info((answer.err.splitlines() or [""])[-1])
    assert answer.status == 2 and "MLFLOW_TRACKING_PASSWORD" in answer.err
    found = align(shop, "doctor", **wrong)
    assert found.status == 1 and "MLFLOW_TRACKING_PASSWORD" in found.out
    right = {**wrong, "MLFLOW_TRACKING_PASSWORD": ENVIRONMENT["MLFLOW_ADMIN_PASSWORD"]}
    assert align(shop, "doctor", **right).status == 0


def test_a_worker_with_a_wrong_auth_string_says_so_and_ends(team):
    process = team.start("worker", "stranger", **WRONG)
    try:
        assert process.wait(PATIENCE_S) != 0
    except subprocess.TimeoutExpired:
        os.kill(process.pid, 9)
        raise
    finally:
        team.running.pop("stranger", None)
    assert "401" in team.log("stranger").read_text()


def test_what_was_dumped_is_there_again_and_is_brought_up_to_date_as_the_readme_says(team, tracking, tmp_path):
    readme = (ROOT / "deploy" / "README.md").read_text()
    run, flow_runs = sft_run(tracking), team.call("/flow_runs/count", {})
    for name in ("prefect", "mlflow"):
        words = f"pg_dump -U align -Fc {name}"
        assert words in readme
        (tmp_path / name).write_bytes(team.sql(*words.split()))
    for name in [name for name in ("first", "second", "mlflow", "prefect") if name in team.running]:
        team.stop(name)
    team.sql("psql", "-d", "mlflow", "-c", "DROP TABLE metrics, params, tags CASCADE")
    team.sql("psql", "-d", "prefect", "-c", "DROP TABLE flow_run CASCADE")
    assert "pg_restore -U align\n--clean --if-exists -d NAME" in readme
    for name in ("prefect", "mlflow"):
        words = f"pg_restore -U align --clean --if-exists -d {name}"
        team.sql(*words.split(), tmp_path / name)
    upgrade = "mlflow db upgrade postgresql:///mlflow"
    assert f"run --rm mlflow {upgrade}" in readme
    given = team.environment("mlflow", team.folder / "mlflow")
    subprocess.run([team.bin / "mlflow", *upgrade.split()[1:]], env=given, check=True, timeout=PATIENCE_S)
    for service in ("mlflow", "prefect"):
        team.start(service)
    for service in ("mlflow", "prefect"):
        team.wait(service)
    assert sft_run(tracking) == run and tracking.get_run(run).data.tags["align.uses"] == "sft"
    assert team.call("/flow_runs/count", {}) == flow_runs > 0
    LOG.info(f"dumped, dropped and restored: {flow_runs} flow runs, and MLflow run {run}")


def test_a_database_that_went_away_is_named(team, tmp_path):
    team.kill("postgres")
    shop = Shop(tmp_path)
    answer = align(shop, "run", "pipelines/tiny.yaml", **asking(team))
    LOG.info((answer.err.splitlines() or [""])[-1])
    assert answer.status == 2 and "Prefect" in answer.err and "database" in answer.err
    found = align(shop, "doctor", **asking(team))
    assert found.status == 1 and "database" in found.out
