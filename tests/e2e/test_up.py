"""`align up` for real: started once, used, hurt, repaired, ended; and what it says when it can't start."""

from __future__ import annotations

import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError

import pytest
from mlflow.tracking import MlflowClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.e2e.conftest import Answer, Shop
from tests.e2e.servers import answers, eventually, free_port
from tests.e2e.up import TINY, Up, of_up

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    yield up
    up.end()


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
