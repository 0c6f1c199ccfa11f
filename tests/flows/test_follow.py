"""While a stage works, its points and newest checkpoints are in MLflow already."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from mlflow.tracking import MlflowClient

from flows.follow import Follower
from flows.watch import Watcher


@pytest.fixture
def client(tmp_path):
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


def checkpoint(draft, step):
    folder = draft / "work" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("state")
    (folder / "manifest.json").write_text("{}")


def eventually(found):
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_points_and_the_newest_checkpoints_are_there_while_it_trains_and_once_only(client, tmp_path):
    experiment = client.create_experiment("follow", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    draft = tmp_path / "draft"
    checkpoint(draft, 2)
    point = {"step": 8, "optimizer_step": 1, "time": time.time(), "metrics": {"train/loss": 1.5}}
    (draft / "metrics.jsonl").write_text(json.dumps(point) + "\n" + '{"step": 16, "half a li')

    def listed():
        return {file.path for file in client.list_artifacts(run, "checkpoints")}

    follower = Follower(client, run, draft, Watcher())
    follower.start()
    eventually(lambda: listed() == {"checkpoints/checkpoint-2"} and client.get_metric_history(run, "train/loss"))
    checkpoint(draft, 4)
    shutil.rmtree(draft / "work" / "checkpoint-2")
    eventually(lambda: listed() == {"checkpoints/checkpoint-4"})
    follower.stop()
    again = Follower(client, run, draft, Watcher())
    again.start()
    again.stop()
    assert [(one.step, one.value) for one in client.get_metric_history(run, "train/loss")] == [(8, 1.5)]


def test_samples_are_a_table_that_grows_and_an_alarm_is_a_tag(client, tmp_path):
    experiment = client.create_experiment("samples", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    draft = tmp_path / "draft"
    draft.mkdir()
    metrics = {"objective/kl": -1.0, "alarms/value": 1.0}
    point = {"step": 8, "optimizer_step": 1, "time": time.time(), "metrics": metrics}
    (draft / "metrics.jsonl").write_text(json.dumps(point) + "\n")
    lines = [
        json.dumps({"step": 8, "optimizer_step": 1, "time": 0.0, "sample": {"prompt": f"Say {i}.", "score": i}}) + "\n"
        for i in range(3)
    ]
    (draft / "samples.jsonl").write_text(lines[0] + lines[1][:-9])

    def table():
        if not any(file.path == "samples.json" for file in client.list_artifacts(run)):
            return None
        return json.loads((tmp_path / "artifacts" / run / "artifacts" / "samples.json").read_text())

    follower = Follower(client, run, draft, Watcher())
    follower.start()
    eventually(lambda: table() == {"columns": ["prompt", "score"], "data": [["Say 0.", 0]]})
    (draft / "samples.jsonl").write_text("".join(lines))
    follower.stop()
    assert [row[1] for row in table()["data"]] == [0, 1, 2]
    tags = client.get_run(run).data.tags
    assert tags["align.alarm.value"] == "rang"
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]
