"""`align up` for real: started once, used, hurt, repaired, ended; and what it says when it can't start."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
from mlflow.tracking import MlflowClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from flows.tracking.artifact_files import put_files
from flows.tracking.mlflow_server import MlflowServer
from tests.e2e.conftest import ROOT, Answer, Shop
from tests.e2e.prefect_server import Prefect
from tests.e2e.servers import answers, free_port
from tests.e2e.test_from_prefect import eventually

pytestmark = pytest.mark.e2e
TINY = "pipelines/tiny.yaml"


def of_up(shop: Shop) -> list[psutil.Process]:
    """Everything that lives and was started by this home's `align up`, directly or not."""

    def ours(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            given = process.environ()
            return (
                given.get("ALIGN_HOME") == str(shop.home)
                and "ALIGN_UP" in given
                and process.status() != psutil.STATUS_ZOMBIE
            )
        return False

    return [process for process in psutil.process_iter() if ours(process)]


def logged_without_a_server(home: Path) -> str:
    """A run with a file, in the way and the place of runs without servers; its id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        server = MlflowServer.reach(home, "earlier")
    run = server.make("earlier", "before", {})
    (home / "note.txt").write_text("made before")
    put_files(server.client, run, home / "note.txt", "notes")
    return run


class Up:
    """A home whose servers are up, where the usual port of Prefect was taken."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.shop = Shop(folder)
        self.shop.environment |= environment
        self.before = logged_without_a_server(self.shop.home)
        with socket.socket() as somebody:
            with suppress(OSError):  # then it is somebody's already
                somebody.bind(("127.0.0.1", 4200))
                somebody.listen()
            self.first = self.shop.align("up", "--json")
        assert self.first.status == 0, self.first.err
        self.api = Prefect(self.shop.environment)
        self.api.api = self.first.json["prefect_api"]

    @property
    def status(self) -> Answer:
        return self.shop.align("up", "--status", "--json")

    def pids(self) -> dict[str, int]:
        found = self.status.json
        return {role: found[role]["pid"] for role in ("prefect", "mlflow", "serving")}

    def kill(self, role: str) -> None:
        os.kill(self.pids()[role], signal.SIGKILL)
        eventually(lambda: self.pids()[role] is None, 10)

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call(f"/flow_runs/{flow_run}")
        return found

    def trigger(self, name: str, **parameters: Any) -> str:
        """A flow run of a deployment, as Prefect's page starts one."""
        deployment = self.api.call(f"/deployments/name/{name}/{name}")["id"]
        made = self.api.call(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def shown(self, flow_run: str) -> dict[str, Any]:
        """What its page shows beside tasks and logs, by name."""
        asked = {"flow_runs": {"id": {"any_": [flow_run]}}}
        return {one["key"]: one["data"] for one in self.api.call("/artifacts/filter", asked)}

    def between(self, flow_run: str, one: str, other: str) -> float:
        """Seconds from a state of a flow run to another, the first of each name."""
        states = self.api.call(f"/flow_run_states/?flow_run_id={flow_run}")
        first, last = (
            next(datetime.fromisoformat(state["timestamp"]) for state in states if state["name"] == name)
            for name in (one, other)
        )
        return (last - first).total_seconds()

    def logged(self, flow_run: str) -> str:
        found = self.api.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
        return "\n".join(line["message"] for line in found)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    yield up
    up.shop.align("down")
    for process in of_up(up.shop):  # only if `down` did not
        process.kill()


def test_all_answer_on_free_ports_and_their_pages_call_the_right_one(up):
    found = up.first.json
    assert found["up"] and found["started"] == ["prefect", "mlflow", "serving"]
    assert found["prefect"]["url"] != "http://127.0.0.1:4200"
    assert up.api.call("/admin/version") == found["prefect"]["version"]
    with urllib.request.urlopen(f"{found['prefect']['url']}/ui-settings") as answer:
        assert f'"api_url":"{found["prefect_api"]}"' in answer.read().decode()
    client = MlflowClient(found["mlflow"]["url"])
    made = client.get_experiment(client.create_experiment("another's"))
    assert made.artifact_location.startswith((up.shop.home / "mlflow").as_uri())  # files here, that can be linked
    assert found["serving"]["url"].startswith(f"{found['prefect']['url']}/deployments/deployment/")


def test_a_page_of_somebody_elses_in_the_same_browser_can_not_call_the_api(up):
    """What that starts is whatever it is told to."""
    own, page = f"{up.first.json['prefect_api']}/flow_runs/filter", up.first.json["prefect"]["url"]

    def asked(**headers: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(own, b"{}", headers)) as answer:
                return int(answer.status)
        except HTTPError as refused:
            return refused.code

    json_too = {"Content-Type": "application/json"}
    for content in ({}, {"Content-Type": "text/plain"}, json_too):  # some of which a page may send without being asked
        assert asked(Origin="http://elsewhere.example", **content) == 403
    assert asked(Host="elsewhere.example:4200", **json_too) == 403  # which leads to this machine by deceit
    assert asked(Origin=page, **json_too) == asked(**json_too) == 200


def test_nor_can_it_send_or_hear_events_by_a_websocket(up):
    """One of which starts a retraining of what it names; browsers ask nobody before they open these."""
    own = up.first.json["prefect_api"].replace("http", "ws", 1) + "/events/in"
    with pytest.raises(InvalidStatus, match="403"), connect(own, origin=Origin("http://elsewhere.example")):
        pass
    for origin in (None, Origin(up.first.json["prefect"]["url"])):
        with connect(own, origin=origin):
            pass


def test_what_was_logged_before_is_there_with_its_files(up, tmp_path):
    client = MlflowClient(up.first.json["mlflow"]["url"])
    assert client.get_run(up.before).info.run_name == "before"
    fetched = client.download_artifacts(up.before, "notes/note.txt", str(tmp_path))
    assert Path(fetched).read_text() == "made before"
    page = f"{up.first.json['mlflow']['url']}/get-artifact?path=notes/note.txt&run_uuid={up.before}"
    with urllib.request.urlopen(page) as answer:  # as its pages show it
        assert answer.read() == b"made before"


def test_up_again_starts_nothing_and_the_status_is_instant(up):
    before = up.pids()
    again = up.shop.align("up", "--json")
    assert again.status == 0 and again.json["started"] == [] and up.pids() == before
    began = time.monotonic()
    assert up.status.status == 0
    assert time.monotonic() - began < 2.5


@pytest.fixture(scope="module")
def run(up) -> Answer:
    answer = up.shop.align("run", TINY, "--until", "base", "--json")
    assert answer.status == 0, answer.err
    return answer


def test_a_run_uses_them_without_being_told(up, run):
    assert up.flow_run(run.json["flow_run_id"])["state_type"] == "COMPLETED"
    client = MlflowClient(up.first.json["mlflow"]["url"])
    stage = client.get_run(run.stage("base")["mlflow_run_id"])
    assert stage.data.tags["mlflow.parentRunId"] == run.json["mlflow_run_id"]
    assert stage.info.artifact_uri.startswith((up.shop.home / "mlflow").as_uri())
    files = {path.path for path in client.list_artifacts(stage.info.run_id, "output")}
    assert "output/model.safetensors" in files
    linked = Path(stage.info.artifact_uri.removeprefix("file://")) / "output" / "model.safetensors"
    assert linked.samefile(Path(run.stage("base")["path"]) / "model.safetensors")


def test_both_show_the_run_where_align_open_says(up, run):
    pages = {"--prefect": up.first.json["prefect"]["url"] + f"/runs/flow-run/{run.json['flow_run_id']}",
             "": up.first.json["mlflow"]["url"] + f"/#/runs/{run.json['mlflow_run_id']}"}  # fmt: skip
    for option, page in pages.items():
        opened = up.shop.align("open", run.json["run_id"], *option.split(), BROWSER="true")
        assert (opened.status, opened.out) == (0, f"{page}\n")


def test_a_form_of_prefects_page_is_run_and_its_page_shows_plan_progress_and_report(up, run):
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
        assert up.between(flow_run, "Running", "Failed") < 5.0  # one second, on a machine that does nothing else
        eventually(lambda flow_run=flow_run, said=said: said in up.logged(flow_run), 30)
        assert "Traceback" not in up.logged(flow_run)


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


def test_what_was_killed_is_found_and_started_again_alone_and_once(up):
    before = up.pids()
    up.kill("mlflow")
    assert up.status.status == 1
    doctor = up.shop.align("doctor", "--json")
    broken = [one for one in doctor.json["findings"] if one["level"] == "broken"]
    assert doctor.status == 1 and [one["found"].split(";")[0] for one in broken] == ["mlflow has ended"]
    both = [up.shop.start("up", "--json") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    started = [Answer(0, out, "").json["started"] for out, _ in said]
    assert sorted(started) == [[], ["mlflow"]], said
    after = up.pids()
    assert up.status.status == 0 and after != before
    assert (after["prefect"], after["serving"]) == (before["prefect"], before["serving"])


def test_the_doctor_has_nothing_against_them(up):
    doctor = up.shop.align("doctor", "--json")
    assert doctor.status == 0, doctor.out
    found = [one["found"] for one in doctor.json["findings"] if one["check"] == "servers"]
    assert len(found) == 3 and "deployments are served" in found[2]


def test_down_ends_all_of_it_and_its_flow_run_too_and_all_stays_to_be_seen(up, run):
    flow_run = up.trigger("align", recipe=TINY, until="sft", overrides={"sft.epochs": 400})
    eventually(lambda: up.shop.checkpoints("sft"), 120)
    ports = [int(up.first.json[role]["url"].rsplit(":", 1)[1]) for role in ("prefect", "mlflow")]
    answer = up.shop.align("down", "--json")
    assert answer.status == 0 and answer.json["ended"] == ["prefect", "mlflow", "serving"]
    assert answer.json["killed"] == 0 and of_up(up.shop) == []
    assert not any(answers(port) for port in ports)
    assert up.status.status == 1 and up.shop.align("down").out == "was not up\n"
    with closing(sqlite3.connect(up.shop.home / "prefect.db")) as database:
        states = dict(database.execute("select id, state_name from flow_run").fetchall())
    assert states[run.json["flow_run_id"]] == "Completed" and states[flow_run] == "Crashed"
    client = MlflowClient(f"sqlite:///{up.shop.home / 'mlflow.db'}")
    assert client.get_run(run.json["mlflow_run_id"]).info.status == "FINISHED"
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert {one.info.status for one in runs} == {"FINISHED", "KILLED"}


def test_a_run_without_them_writes_to_the_same_databases(up, run):
    answer = up.shop.align("run", TINY, "--until", "base", "--json")
    assert answer.status == 0 and answer.statuses == {"base": "cached"}
    with closing(sqlite3.connect(up.shop.home / "prefect.db")) as database:
        runs = {row[0] for row in database.execute("select id from flow_run")}
    assert {run.json["flow_run_id"], answer.json["flow_run_id"]} <= runs
    client = MlflowClient(f"sqlite:///{up.shop.home / 'mlflow.db'}")
    stage = client.get_run(answer.json["mlflow_run_id"]).data.tags["align.stage.base"]
    assert stage == run.stage("base")["mlflow_run_id"]


def test_a_database_that_cannot_be_migrated_ends_up_with_its_words_and_leaves_nothing(up, tmp_path):
    """One of a later version, say."""
    shop = Shop(tmp_path)
    shop.home.mkdir()
    with closing(sqlite3.connect(shop.home / "prefect.db")) as database, database:
        database.execute("create table alembic_version (version_num varchar(32))")
        database.execute("insert into alembic_version values ('of-tomorrow')")
    answer = shop.align("up", "--prefect-port", str(free_port()))
    assert answer.status == 1
    assert (
        "prefect ended while it started" in answer.err and "of-tomorrow" in answer.err and "prefect.log" in answer.err
    )
    assert of_up(shop) == [] and shop.align("up", "--status").out == "not up; `align up` starts it\n"
