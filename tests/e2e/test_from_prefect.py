"""Flow runs started from a Prefect server: two that share a stage, one that is cancelled, one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.conftest import ROOT, Shop
from tests.e2e.prefect_server import Prefect
from tests.e2e.servers import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPE = {"recipe": "pipelines/tiny.yaml", "until": "sft"}
SERVE = "from flows.align import align; align.serve(name='tiny', limit=4, pause_on_shutdown=False)"


class Served:
    """A server, and a process that runs what is asked of it there."""

    def __init__(self, folder: Path) -> None:
        self.shop = Shop(folder)
        self.server = Prefect(self.shop.environment)
        self.server.start()
        self.environment = {
            **self.shop.environment,
            "PREFECT_API_URL": self.server.api,
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        self.runner: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(lambda: self.deployment, 90)

    @property
    def deployment(self) -> str:
        return str(self.server.call("/deployments/name/align/tiny")["id"])

    def trigger(self, **overrides: Any) -> str:
        """A flow run, as the page's button starts one."""
        parameters = {**RECIPE, "overrides": overrides}
        return str(
            self.server.call(f"/deployments/{self.deployment}/create_flow_run", {"parameters": parameters})["id"]
        )

    def state(self, flow_run: str) -> str:
        return str(self.server.call(f"/flow_runs/{flow_run}")["state_name"])

    def trainers(self) -> list[psutil.Process]:
        """Processes that train, of this home."""
        home = str(self.shop.home)
        return [each for each in psutil.process_iter() if home in " ".join(_words(each)) and "tasks" in _words(each)]

    def close(self) -> None:
        self.end_runner(signal.SIGTERM)
        self.server.stop()

    def end_runner(self, number: int) -> None:
        """With everything that it started."""
        if self.runner is not None:
            os.killpg(self.runner.pid, number)
            self.runner.wait(60)
            self.runner = None


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.close()


def results(served: Served, uses: str) -> list[Path]:
    return list((served.shop.home / "store").glob(f"{uses}-*"))


def logs(served: Served, flow_run: str) -> str:
    found = served.server.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
    return "\n".join(line["message"] for line in found)


def test_two_flow_runs_train_a_shared_stage_once(served):
    both = [served.trigger(), served.trigger()]
    for flow_run in both:
        eventually(lambda flow_run=flow_run: served.state(flow_run) == "Completed", 240)
    assert len(results(served, "sft")) == 1

    def said(text: str) -> list[str]:
        return [flow_run for flow_run in both if text in logs(served, flow_run)]

    eventually(lambda: said("sft: ran") and said("sft: cached"), 30)  # Prefect sends what is logged by and by
    assert len(said("sft: ran")) == len(said("sft: cached")) == 1


def test_a_cancelled_flow_run_leaves_no_process_and_goes_on_when_run_again(served):
    flow_run = served.trigger(**{"sft.epochs": 60})
    eventually(lambda: served.shop.checkpoints("sft"), 120)
    assert served.trainers()
    served.server.call(f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    eventually(lambda: served.state(flow_run) == "Cancelled", 90)
    eventually(lambda: not served.trainers(), 30)
    client = MlflowClient(f"sqlite:///{served.shop.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    killed = client.search_runs([experiment], "attributes.status = 'KILLED'")
    assert {run.data.tags["align.kind"] for run in killed} == {"pipeline", "stage"}
    again = served.trigger(**{"sft.epochs": 60})
    eventually(lambda: served.state(again) == "Completed", 240)
    eventually(lambda: "sft: going on from checkpoint-" in logs(served, again), 30)


def test_a_flow_run_whose_process_was_killed_is_not_running_for_ever(served):
    flow_run = served.trigger(**{"sft.epochs": 80})
    trainer = eventually(served.trainers, 120)[0]
    flow = trainer.parent()
    served.end_runner(signal.SIGKILL)  # whoever started the flow run dies with it: nobody is left to report
    flow.kill()
    eventually(lambda: not served.trainers(), 30)
    assert served.state(flow_run) == "Running"
    assert served.shop.align("sync", PREFECT_API_URL=served.server.api).status == 0
    assert served.state(flow_run) == "Crashed"
