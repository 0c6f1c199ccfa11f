"""Artifact stores elsewhere raise what they like, and say it in no words of MLflow's: no run ends for that."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

from artifacts.errors import StageError, UserError
from artifacts.store import Store
from flows.commands.planning import Wanted, plan_of
from flows.records import RunRecord
from flows.running.watch import Watcher
from flows.tracking import artifact_files, courier, sync
from flows.tracking.artifact_files import put_checkpoints
from flows.tracking.courier import Courier
from flows.tracking.elsewhere import fetch
from flows.tracking.mlflow_server import KEY_TAG, MlflowServer
from flows.tracking.tracked_run import Origin, TrackedRun
from flows.tracking.tracker import Tracker
from tests.conftest import chain


class EndpointConnectionError(Exception):
    """As botocore's: no OSError and none of MLflow's."""


@pytest.mark.parametrize(
    "error", [EndpointConnectionError("no bucket"), ModuleNotFoundError("No module named 'boto3'")]
)
def test_what_can_not_be_fetched_is_made_here(store: Store, error: Exception) -> None:
    def fails(*words: Any, **more: Any) -> Any:
        raise error

    run = SimpleNamespace(info=SimpleNamespace(run_id="r" * 32, status="FINISHED"))
    client = SimpleNamespace(search_experiments=list, search_runs=lambda *_: [run], list_artifacts=fails)
    server: Any = SimpleNamespace(is_own=False, name="theirs", shown="http://theirs", client=client)
    said: list[str] = []
    assert not fetch(server, store, "sft", "k" * 64, said.append, print)
    assert said == [f"nothing could be fetched from http://theirs: {error}"]


def test_a_checkpoint_that_was_not_sent_whole_is_passed_over_by_name(
    store: Store, shared_server: MlflowServer, tmp_path: Path
) -> None:
    """Its manifest is sent last. Here a real database; that it is another machine's is all that is made up."""
    theirs = shared_server
    run = theirs.make("recipe", "sft", {KEY_TAG: "k" * 64})
    for step, files in ((4, ["optimizer.pt", "manifest.json"]), (8, ["optimizer.pt"])):
        for name in files:
            (tmp_path / name).write_text("{}" if name == "manifest.json" else "state")
            theirs.client.log_artifact(run, str(tmp_path / name), f"checkpoints/checkpoint-{step}")
    said: list[str] = []
    assert not fetch(theirs, store, "sft", "k" * 64, said.append, print)
    assert said == [
        f"warning: checkpoint-8 on {theirs.shown} is passed over: it was not sent whole",
        f"goes on from checkpoint-4, fetched from {theirs.shown}",
    ]
    assert (store.draft("sft", "k" * 64) / "work" / "checkpoint-4" / "optimizer.pt").read_text() == "state"


def test_one_run_that_can_not_be_sent_keeps_no_other_back(store: Store, monkeypatch, capsys) -> None:
    for name in ("one", "two"):
        RunRecord("recipe.yaml", name, None, None, []).save(store.home)

    def send(server: Any, store: Store, record: RunRecord) -> list[dict[str, Any]]:
        if record.run_id == "one":
            raise EndpointConnectionError("no bucket")
        return [{"run_id": record.run_id, "stage": None, "mlflow_run_id": "m"}]

    monkeypatch.setattr(sync, "send_run", send)
    with pytest.raises(StageError, match="one: no bucket\nnot all could be sent"):
        sync.sync(as_json=True)
    assert [each["run_id"] for each in json.loads(capsys.readouterr().out)["sent"]] == ["two"]


def test_a_run_begins_though_its_first_files_can_not_be_sent(
    store: Store, write_recipe, empty_mlflow, monkeypatch
) -> None:
    def fails(*words: Any) -> None:
        raise EndpointConnectionError("no bucket")

    monkeypatch.setattr(TrackedRun, "_send_files", fails)
    plan = plan_of(Wanted(write_recipe(chain())), store)
    tracker = Tracker.begin(store, plan, "recipe-1", Origin(), Watcher(), offline=False)
    assert tracker.run.live()
    tracker.end("KILLED", [])  # which waits no longer than it must


def test_who_may_write_but_not_delete_sends_each_checkpoint_once(tmp_path: Path, monkeypatch) -> None:
    """With MLflow's own accounts only an experiment's maker may delete from it."""
    run, draft = "r" * 32, tmp_path / "draft"
    logged: list[str] = []
    client: Any = SimpleNamespace(
        tracking_uri="http://theirs", log_artifact=lambda run, path, place: logged.append(f"{place}/{Path(path).name}"),
        get_run=lambda run: SimpleNamespace(info=SimpleNamespace(artifact_uri="mlflow-artifacts:/1/r/artifacts")),
        list_artifacts=lambda *_: [SimpleNamespace(path=f"checkpoints/checkpoint-{n}", is_dir=True) for n in (4, 8)],
    )  # fmt: skip

    def refused(path: str) -> None:
        raise MlflowException("Permission denied")

    store = SimpleNamespace(delete_artifacts=refused)
    monkeypatch.setattr(artifact_files, "get_artifact_repository", lambda *_: store)
    for name in ("state", "manifest.json"):
        (draft / "work" / "checkpoint-8").mkdir(parents=True, exist_ok=True)
        (draft / "work" / "checkpoint-8" / name).write_text("{}")
    sent: set[str] = set()
    for _ in range(2):
        put_checkpoints(client, run, draft, sent, sent.update)
    assert logged == ["checkpoints/checkpoint-8/state", "checkpoints/checkpoint-8/manifest.json"]
    dropped: list[str] = []
    store.delete_artifacts = dropped.append
    put_checkpoints(client, run, draft, set(), sent.update)
    assert dropped == ["checkpoints/checkpoint-4"]


def test_how_long_the_end_of_a_run_waits_is_as_the_environment_says(shared_server: MlflowServer, monkeypatch) -> None:
    assert Courier(shared_server, Watcher()).patience_s == 120
    monkeypatch.setenv("ALIGN_SEND_PATIENCE", "3600")
    assert Courier(shared_server, Watcher()).patience_s == 3600


@pytest.mark.parametrize("said", ["long", "-1", "nan", "inf", "1e12"])
def test_a_patience_that_is_no_time_is_refused_before_anything_runs(
    shared_server: MlflowServer, monkeypatch, said: str
) -> None:
    monkeypatch.setenv("ALIGN_SEND_PATIENCE", said)
    with pytest.raises(UserError, match=f"ALIGN_SEND_PATIENCE: wanted a number of seconds, 0 or more, got '{said}'"):
        Courier(shared_server, Watcher())


@pytest.mark.parametrize("patience", ["60", None])
def test_where_nothing_may_be_left_behind_the_end_of_a_run_tries_again(
    shared_server: MlflowServer, monkeypatch, patience
) -> None:
    """Elsewhere `align sync` has another day: nobody waits there for a server that is gone."""
    monkeypatch.setattr(courier, "INTERVAL_S", 0.1)
    if patience is not None:
        monkeypatch.setenv("ALIGN_SEND_PATIENCE", patience)
    calls: list[int] = []

    def last() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise EndpointConnectionError("it is just being restarted")

    sending = Courier(shared_server, Watcher())
    sending.start()
    assert sending.finish(last, 10) == (patience is not None)
    assert len(calls) == (3 if patience is not None else 1)


def test_a_login_that_is_refused_is_not_waited_for(shared_server: MlflowServer, monkeypatch) -> None:
    monkeypatch.setenv("ALIGN_SEND_PATIENCE", "60")
    calls: list[int] = []

    def last() -> None:
        calls.append(1)
        raise MlflowException("You are not authenticated", error_code=UNAUTHENTICATED)

    sending = Courier(shared_server, Watcher())
    sending.start()
    assert not sending.finish(last, 10)
    assert calls == [1] and sending.insists


def test_what_is_wrong_is_said_once_however_much_else_can_be_sent(shared_server: MlflowServer) -> None:
    """Points go to one place, files to another, whose key may have run out."""
    said: list[str] = []

    class Hearing(Watcher):
        def line(self, label: str, text: str) -> None:
            said.append(text)

    sending, broken, done = Courier(shared_server, Hearing()), [True], list[str]()

    def errand(name: str) -> None:
        if name == "first" and broken:
            raise EndpointConnectionError("ExpiredToken")
        done.append(name)

    sending.also(partial(errand, "first"))
    sending.also(partial(errand, "second"))
    for _ in range(3):
        sending.deliver()
    assert done == ["second"] and sending.lost
    assert said == ["does not take what it is sent; it waits on disk: ExpiredToken"]
    broken.clear()
    sending.deliver()
    assert done == ["second", "first"] and not sending.lost and said[1:] == ["takes it again"]
