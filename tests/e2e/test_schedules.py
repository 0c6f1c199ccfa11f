"""When retraining runs, and who is told: schedules that outlive what serves them, events, collisions, a webhook."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.servers.stuck_rule import NAME as STUCK
from tests.e2e.conftest import ROOT, Shop
from tests.e2e.prefect_server import Prefect
from tests.e2e.servers import eventually
from tests.e2e.test_retraining import Retraining

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PREFECT = str(Path(sys.executable).parent / "prefect")
NAME = "align-retrain/align-retrain"
ON_NEW_DATA = "align: retrain when data changed"
PATIENCE_S = 600


class Served:
    """A server on which what `align up` serves is registered."""

    def __init__(self, folder: Path) -> None:
        self.shop = Shop(folder)
        self.server = Prefect({**self.shop.environment, "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "2"})
        self.server.start()
        self.project = folder / "project"
        self.project.mkdir()
        self.environment = {
            **self.shop.environment, "PREFECT_API_URL": self.server.api, "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "ALIGN_DATA_ROOTS": f"{ROOT / 'pipelines'}:{self.project}", "CUDA_VISIBLE_DEVICES": "GPU-1f",
        }  # fmt: skip
        self.serving: subprocess.Popen[bytes] | None = None
        self.serve()

    def serve(self) -> None:
        """Until all is registered; for the second time after what served before has ended."""
        before = self.deployment["updated"] if self.serving is not None else ""
        self.end()
        self.serving = subprocess.Popen(
            [sys.executable, "-m", "flows.deployments.serving"], cwd=ROOT, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(lambda: self.deployment["updated"] > before, PATIENCE_S)

    def rules(self, name: str) -> list[dict[str, Any]]:
        """The server's rules of this name."""
        return [one for one in self.server.call("/automations/filter", {}) if one["name"] == name]

    def end(self) -> None:
        if self.serving is not None:
            os.killpg(self.serving.pid, signal.SIGTERM)
            self.serving.wait(PATIENCE_S)

    @property
    def deployment(self) -> dict[str, Any]:
        return dict(self.server.call(f"/deployments/name/{NAME}"))

    def prefect(self, *words: str) -> None:
        """Prefect's own command."""
        self._run(PREFECT, *words)

    def python(self, code: str) -> None:
        self._run(sys.executable, "-c", code)

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def trigger(self, **parameters: Any) -> str:
        made = self.server.call(f"/deployments/{self.deployment['id']}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def flow_run(self, number: str) -> dict[str, Any]:
        return dict(self.server.call(f"/flow_runs/{number}"))

    def named(self, state: str, **parameters: Any) -> list[dict[str, Any]]:
        """Retrainings in this state that were asked for with these parameters."""
        wanted = {"deployments": {"id": {"any_": [self.deployment["id"]]}}, "sort": "START_TIME_DESC"}
        runs = self.server.call("/flow_runs/filter", {**wanted, "flow_runs": {"state": {"name": {"any_": [state]}}}})
        return [run for run in runs if parameters.items() <= run["parameters"].items()]


class Listener(HTTPServer):
    """A webhook, and what it was called with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Heard)
        self.heard: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Heard(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        self.server.heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener
        listener.shutdown()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.end()
    served.server.stop()


def test_each_gpu_has_a_limit_of_one_on_the_server(served):
    limit = f"/v2/concurrency_limits/{socket.gethostname()}-gpu-GPU-1f"
    assert eventually(lambda: served.server.call(limit), PATIENCE_S)["limit"] == 1


def test_schedules_that_people_added_are_there_when_it_is_served_again(served):
    served.prefect("deployment", "schedule", "create", NAME, "--cron", "0 3 * * *", "--timezone", "Europe/Rome")
    monthly = {"schedule": {"rrule": "FREQ=MONTHLY;BYMONTHDAY=1"}, "active": True, "parameters": {"model": "monthly"}}
    served.server.call(f"/deployments/{served.deployment['id']}/schedules", [monthly])
    served.serve()
    found = served.deployment["schedules"]
    assert {one["schedule"].get("cron") for one in found} == {"0 3 * * *", None}
    assert [one["parameters"] for one in found if one["parameters"]] == [{"model": "monthly"}]


def test_a_cron_schedule_fires_with_the_parameters_that_it_was_given(served):
    every_minute = {"schedule": {"cron": "* * * * *", "timezone": "Europe/Rome"}, "active": True,
                    "parameters": {"recipe": "pipelines/of-the-cron.yaml"}}  # fmt: skip
    (made,) = served.server.call(f"/deployments/{served.deployment['id']}/schedules", [every_minute])
    try:
        (run, *_) = eventually(lambda: served.named("Failed", recipe="pipelines/of-the-cron.yaml"), PATIENCE_S)
    finally:
        served.server.call(f"/deployments/{served.deployment['id']}/schedules/{made['id']}", method="DELETE")
    assert run["auto_scheduled"] and datetime.fromisoformat(run["expected_start_time"]).second == 0
    assert run["state"]["message"].startswith("pipelines/of-the-cron.yaml: no such recipe")


def test_what_people_set_on_a_deployments_page_is_so_when_it_is_served_again(served):
    theirs = {"paused": True, "parameters": {"recipe": "pipelines/tiny.yaml"}, "tags": ["team"]}
    address = f"/deployments/{served.deployment['id']}"
    served.server.call(address, theirs, method="PATCH")
    (rule,) = served.rules(ON_NEW_DATA)
    served.server.call(f"/automations/{rule['id']}", {"enabled": False}, method="PATCH")
    try:
        served.serve()
        assert {name: served.deployment[name] for name in theirs} == theirs
        eventually(lambda: [one["enabled"] for one in served.rules(ON_NEW_DATA)] == [False], PATIENCE_S)
    finally:
        served.server.call(address, {"paused": False, "parameters": {}, "tags": []}, method="PATCH")
        served.server.call(f"/automations/{served.rules(ON_NEW_DATA)[0]['id']}", {"enabled": True}, method="PATCH")


def test_parameters_that_a_form_takes_no_more_do_not_keep_the_rest_from_being_served(served):
    """As after an upgrade, by which a field has gone."""
    address = f"/deployments/{served.deployment['id']}"
    served.server.call(address, {"parameters": {"recipe": "r.yaml", "gone": 1}, "enforce_parameter_schema": False},
                       method="PATCH")  # fmt: skip
    served.serve()
    assert served.deployment["parameters"] == {} and served.deployment["enforce_parameter_schema"]


def test_data_that_changed_starts_a_retraining_of_the_recipe_that_the_event_names(served):
    payload = json.dumps({"recipe": "pipelines/no-such.yaml"})
    served.prefect("event", "emit", "align.data.changed", "--resource-id", "align.data.pairs", "--payload", payload)
    wanted = {"deployments": {"id": {"any_": [served.deployment["id"]]}}}

    def started() -> list[dict[str, Any]]:
        runs = served.server.call("/flow_runs/filter", {**wanted, "sort": "START_TIME_DESC"})
        return [run for run in runs if run["parameters"].get("recipe") == "pipelines/no-such.yaml"]

    run = eventually(started, PATIENCE_S)[0]
    assert run["parameters"]["model"] == ""
    eventually(lambda: served.flow_run(run["id"])["state_type"] == "FAILED", PATIENCE_S)
    assert "no such recipe" in served.flow_run(run["id"])["state"]["message"]


def test_a_schedule_retrains_what_is_new_and_an_event_does_when_data_changed(served):
    """Every few seconds here: a first champion, then nothing new; then better data, of which an event tells."""
    ours = Retraining(served.shop, served.server, served.project)
    ours.teach("NO")
    recipe = str(ours.recipe)
    often = {"schedule": {"interval": 10}, "active": True, "parameters": {"recipe": recipe, "must": ["check_rate>=0"]}}
    served.server.call(f"/deployments/{served.deployment['id']}/schedules", [often])
    eventually(lambda: served.named("Promoted", recipe=recipe), PATIENCE_S)
    assert ours.aliases == {"champion": "1"}
    same = eventually(lambda: served.named("Unchanged", recipe=recipe), PATIENCE_S)[0]
    assert same["auto_scheduled"] and same["total_run_time"] < 60
    (schedule,) = [one for one in served.deployment["schedules"] if one["parameters"].get("recipe") == recipe]
    served.server.call(f"/deployments/{served.deployment['id']}/schedules/{schedule['id']}", method="DELETE")
    begun = ("Running", "Pending", "Late", "Scheduled")  # else one of these would see the new data first
    eventually(lambda: not any(served.named(state, recipe=recipe) for state in begun), PATIENCE_S)
    ours.teach("ok")
    payload = json.dumps({"recipe": recipe, "model": "assistant"})
    served.prefect("event", "emit", "align.data.changed", "--resource-id", "align.data.rows", "--payload", payload)
    eventually(lambda: served.named("Promoted", recipe=recipe, model="assistant"), PATIENCE_S)
    assert ours.aliases == {"champion": "2", "previous": "1"}


def test_what_is_due_while_another_goes_on_is_skipped(served):
    first = served.trigger(recipe="pipelines/tiny.yaml", overrides={"sft.epochs": 3000})
    eventually(lambda: served.flow_run(first)["state_type"] == "RUNNING", PATIENCE_S)
    second = served.trigger(recipe="pipelines/tiny.yaml")
    eventually(lambda: served.flow_run(second)["state_type"] == "CANCELLED", PATIENCE_S)
    assert "concurrency limit" in served.flow_run(second)["state"]["message"]
    served.server.call(f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    eventually(lambda: served.flow_run(first)["state_type"] == "CANCELLED", PATIENCE_S)


def test_whoever_asked_for_it_is_told_of_a_new_champion_and_of_what_failed(served, listener):
    made = f"from prefect.blocks.webhook import Webhook; Webhook(url={listener.url!r}, method='POST').save('team')"
    served.python(made)
    served.environment["ALIGN_NOTIFY_BLOCK"] = "webhook/team"
    served.serve()
    actions = ["change-flow-run-state", "call-webhook"]
    eventually(lambda: [one["type"] for one in served.rules(STUCK)[0]["actions"]] == actions, PATIENCE_S)
    served.python(
        "from flows.registry.champion_event import tell_champion; tell_champion('assistant', '2', '1', 'promote')"
    )
    said = "assistant: version 2 is champion, version 1 was before (promote)"
    eventually(lambda: any(said in one for one in listener.heard), PATIENCE_S)
    served.trigger(recipe="pipelines/no-such.yaml")
    eventually(lambda: any("is Failed: " in one and "no such recipe" in one for one in listener.heard), PATIENCE_S)


def test_what_is_due_meanwhile_waits_and_then_runs_where_it_is_to_be_queued(served):
    served.environment["ALIGN_RETRAIN_OVERLAP"] = "queue"
    served.serve()
    first = served.trigger(recipe="pipelines/tiny.yaml", overrides={"sft.epochs": 3000})
    eventually(lambda: served.flow_run(first)["state_type"] == "RUNNING", PATIENCE_S)
    second = served.trigger(recipe="pipelines/no-such.yaml")
    eventually(lambda: served.flow_run(second)["state_name"] == "Late", PATIENCE_S)
    served.server.call(f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    eventually(lambda: served.flow_run(second)["state_type"] == "FAILED", PATIENCE_S)
    assert "no such recipe" in served.flow_run(second)["state"]["message"]
