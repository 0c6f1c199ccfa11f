"""MLflow goes away, comes back, is slow, or is left out: training goes on, and in the end the server has everything."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from flows.tracking.tracker import HURRY_S
from tests.e2e.conftest import Shop
from tests.e2e.mlflow_servers import Mlflow, MlflowWithLogins
from tests.e2e.servers import free_port

pytestmark = pytest.mark.e2e
RECIPE = ["pipelines/tiny.yaml", "--until", "sft"]


@pytest.fixture
def mlflow(tmp_path) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path / "mlflow")
    server.start()
    yield server
    server.stop()


def until_sft_has_a_point(shop: Shop, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size for file in (shop.home / "drafts").glob("sft-*/metrics.jsonl")):
        assert time.monotonic() < deadline and run.poll() is None, run.communicate()
        time.sleep(0.05)


def assert_complete(client: MlflowClient, record: dict) -> None:
    """The server has the run, each stage under it, each of its points once, and its output."""
    parent = client.get_run(record["mlflow_run_id"])
    assert parent.info.status == "FINISHED" and "[sft](#/" in parent.data.tags["mlflow.note.content"]
    for stage in record["stages"]:
        run = client.get_run(stage["mlflow_run_id"])
        assert run.info.status == "FINISHED" and run.data.tags["align.digest"] == stage["digest"]
        assert run.data.tags["mlflow.parentRunId"] == record["mlflow_run_id"]
        assert parent.data.tags[f"align.stage.{stage['name']}"] == run.info.run_id
        assert {"output", "stage"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
        file = Path(stage["path"]).parent / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        wanted = [(line["step"], line["metrics"]["train/loss"]) for line in lines if "train/loss" in line["metrics"]]
        found = client.get_metric_history(run.info.run_id, "train/loss") if wanted else []
        # The headline is a point of its own at the last step, where it is not what was logged there.
        assert sorted({(one.step, one.value) for one in found}) == sorted(set(wanted) | {
            (one.step, one.value) for one in found if one.value == stage["metrics"].get("train/loss")
        })  # fmt: skip
        assert len(found) - len(wanted) in (0, 1)


def assert_nothing_left(shop: Shop, **environment: str) -> None:
    assert shop.align("sync", "--json", **environment).json["sent"] == []


@pytest.mark.slow
def test_a_server_that_dies_amid_a_stage_gets_all_when_it_is_back(mlflow, tmp_path):
    shop = Shop(tmp_path)
    run = shop.start("run", *RECIPE, "sft.epochs=6", "--json", MLFLOW_TRACKING_URI=mlflow.uri)
    until_sft_has_a_point(shop, run)
    mlflow.stop()
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert {stage["status"] for stage in json.loads(out)["stages"]} == {"ran"}
    assert "it waits on disk" in err and "align sync" in err
    mlflow.start()
    answer = shop.align("sync", "--json", MLFLOW_TRACKING_URI=mlflow.uri)
    assert answer.status == 0 and {line["stage"] for line in answer.json["sent"]} >= {None, "sft"}
    record = shop.align("show", "last", "--json").json
    assert_complete(MlflowClient(mlflow.uri), record)
    assert_nothing_left(shop, MLFLOW_TRACKING_URI=mlflow.uri)


@pytest.mark.slow
def test_a_login_that_ends_amid_a_stage_costs_nothing(tmp_path, monkeypatch):
    """As a token does that runs out: the run ends as it would, says what waits, and a new login sends it."""
    server = MlflowWithLogins(tmp_path / "mlflow", "until noon and no longer")
    server.start()
    try:
        shop, where = Shop(tmp_path), {"MLFLOW_TRACKING_URI": server.uri}
        old = {**where, **server.login()}
        run = shop.start("run", *RECIPE, "sft.epochs=6", "--json", **old)
        until_sft_has_a_point(shop, run)
        server.change_password("from noon on another one")
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert {stage["status"] for stage in json.loads(out)["stages"]} == {"ran"}
        assert "it waits on disk" in err and "align sync" in err and "Traceback" not in err
        refused = shop.align("sync", **old)
        assert refused.status == 2 and "MLFLOW_TRACKING_PASSWORD" in refused.err
        answer = shop.align("sync", "--json", **where, **server.login())
        assert answer.status == 0 and {line["stage"] for line in answer.json["sent"]} >= {None, "sft"}
        for name, value in server.login().items():
            monkeypatch.setenv(name, value)
        assert_complete(MlflowClient(server.uri), shop.align("show", "last", "--json").json)
    finally:
        server.stop()


def test_offline_nothing_is_asked_of_mlflow_and_sync_brings_all(first, prefect, tmp_path):
    shop = Shop(tmp_path)
    shop.environment["PREFECT_API_URL"] = prefect.api
    nobody = f"http://127.0.0.1:{free_port()}"
    answer = shop.align("run", *RECIPE, "--offline-tracking", "--json", MLFLOW_TRACKING_URI=nobody)
    assert answer.status == 0, answer.err
    assert answer.json["mlflow_run_id"] is None and not (shop.home / "mlflow.db").exists()
    refused = shop.align("sync", MLFLOW_TRACKING_URI=nobody, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert refused.status == 2 and "can't be used" in refused.err
    assert {line["stage"] for line in shop.align("sync", "--json").json["sent"]} >= {None, "sft", "base"}
    assert_complete(MlflowClient(f"sqlite:///{shop.home / 'mlflow.db'}"), shop.align("show", "last", "--json").json)
    assert_nothing_left(shop)


@pytest.mark.slow
def test_a_run_whose_process_was_killed_is_not_shown_as_running_for_ever(tmp_path):
    shop = Shop(tmp_path)
    run = shop.start("run", *RECIPE, "sft.epochs=40")
    until_sft_has_a_point(shop, run)
    client = MlflowClient(f"sqlite:///{shop.home / 'mlflow.db'}")

    def states() -> dict[str, str]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return {run.data.tags["align.kind"]: run.info.status for run in client.search_runs(experiments)
                if run.data.tags.get("align.uses", "sft") == "sft"}  # fmt: skip

    running, deadline = {"pipeline": "RUNNING", "stage": "RUNNING"}, time.monotonic() + 30
    while states() != running:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.2)
    run.kill()
    run.communicate()
    assert states() == running
    assert shop.align("sync").status == 0
    assert states() == {"pipeline": "KILLED", "stage": "KILLED"}


class Slow(threading.Thread):
    """A way to a server on which every answer takes `delay` seconds longer."""

    def __init__(self, port: int, delay: float) -> None:
        super().__init__(daemon=True)
        self.to, self.delay, self.requests = port, delay, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            with suppress(OSError):
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                threading.Thread(target=self.pump, args=(near, far, 0.0), daemon=True).start()
                threading.Thread(target=self.pump, args=(far, near, self.delay), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.requests += bool(delay)
                time.sleep(delay)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.mark.slow
def test_a_slow_server_holds_up_no_stage(first, mlflow, tmp_path):
    slow = Slow(mlflow.port, delay=0.7)
    slow.start()
    shop = Shop(tmp_path)
    answer = shop.align("run", *RECIPE, "--json", MLFLOW_TRACKING_URI=slow.uri)
    assert answer.status == 0, answer.err
    waited = 0.7 * slow.requests
    assert waited > 30, (
        "so long the answers kept someone waiting; sent in a stage's own time it would be that much longer"
    )
    seconds = {stage["name"]: stage["seconds"] for stage in answer.json["stages"]}
    before = {name: first.stage(name)["seconds"] for name in seconds}
    assert sum(seconds.values()) < 1.3 * sum(before.values()) + HURRY_S * len(seconds) + 5
    record = shop.align("show", "last", "--json").json
    if MlflowClient(mlflow.uri).get_run(record["mlflow_run_id"]).info.status == "RUNNING":  # two minutes are its limit
        assert "does not have all of this run yet; `align sync` sends what it lacks" in answer.err
        assert shop.align("sync", MLFLOW_TRACKING_URI=mlflow.uri).status == 0
    assert_complete(MlflowClient(mlflow.uri), record)
