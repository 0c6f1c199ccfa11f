"""While a stage works, its points, samples and newest checkpoints are in MLflow already, and once only."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from mlflow.tracking import MlflowClient

from flows.tracking.points import send_points
from flows.tracking.sent import Sent


@pytest.fixture
def client(tmp_path, database):
    shutil.copy(database, tmp_path)
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def run(client, tmp_path):
    experiment = client.create_experiment("points", artifact_location=(tmp_path / "artifacts").as_uri())
    return client.create_run(experiment).info.run_id


@pytest.fixture
def sent(tmp_path, run):
    sent = Sent(tmp_path / "sent")
    sent.made(run)
    return sent


@pytest.fixture
def draft(tmp_path):
    (tmp_path / "draft").mkdir()
    return tmp_path / "draft"


def checkpoint(draft, step):
    folder = draft / "work" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("state")
    (folder / "manifest.json").write_text("{}")


def line(**more):
    return json.dumps({"step": 8, "optimizer_step": 1, "time": time.time(), **more}) + "\n"


def test_points_are_sent_once_also_by_another_process_and_a_half_line_waits(client, run, sent, draft, tmp_path):
    (draft / "metrics.jsonl").write_text(line(metrics={"train/loss": 1.5}) + '{"step": 16, "half a li')
    send_points(client, run, draft, sent)
    send_points(client, run, draft, Sent(tmp_path / "sent"))
    assert [(one.step, one.value) for one in client.get_metric_history(run, "train/loss")] == [(8, 1.5)]


def test_the_checkpoints_there_are_those_that_the_stage_keeps(client, run, sent, draft):
    def listed():
        return {file.path for file in client.list_artifacts(run, "checkpoints")}

    checkpoint(draft, 2)
    send_points(client, run, draft, sent)
    assert listed() == {"checkpoints/checkpoint-2"}
    checkpoint(draft, 4)
    shutil.rmtree(draft / "work" / "checkpoint-2")
    send_points(client, run, draft, sent)
    assert listed() == {"checkpoints/checkpoint-4"}


def test_samples_are_a_table_that_grows_and_an_alarm_is_a_tag(client, run, sent, draft, tmp_path):
    (draft / "metrics.jsonl").write_text(line(metrics={"objective/kl": -1.0, "alarms/value": 1.0}))
    lines = [line(sample={"prompt": f"Say {i}.", "score": i}) for i in range(3)]
    (draft / "samples.jsonl").write_text(lines[0] + lines[1][:-9])

    def table():
        return json.loads((tmp_path / "artifacts" / run / "artifacts" / "samples.json").read_text())

    send_points(client, run, draft, sent)
    assert table() == {"columns": ["prompt", "score"], "data": [["Say 0.", 0]]}
    (draft / "samples.jsonl").write_text("".join(lines))
    send_points(client, run, draft, sent)
    assert [row[1] for row in table()["data"]] == [0, 1, 2]
    tags = client.get_run(run).data.tags
    assert tags["align.alarm.value"] == "rang"
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]


def test_two_that_send_the_same_run_do_not_do_it_at_once(sent, tmp_path):
    with sent.held() as free, Sent(tmp_path / "sent").held() as other:
        assert free and not other
    with Sent(tmp_path / "sent").held() as free:
        assert free


def test_a_run_made_anew_on_a_server_has_nothing_yet(sent):
    sent.add(["1 train/loss"])
    sent.mark("complete")
    sent.made("another")
    assert sent.run_id == "another" and not sent.points() and not sent.has("complete")


def test_points_that_arrived_unnoticed_are_not_sent_again(client, run, sent, draft):
    """The process died between the server's answer and its own note of it; trained again, the point has a new time."""
    (draft / "metrics.jsonl").write_text(line(metrics={"train/loss": 1.5}))
    send_points(client, run, draft, sent)
    (sent.folder / "points.txt").unlink()
    sent.mark("pending")
    (draft / "metrics.jsonl").write_text(line(metrics={"train/loss": 1.5}) + line(metrics={"train/other": 2.0}))
    send_points(client, run, draft, sent)
    assert len(client.get_metric_history(run, "train/loss")) == len(client.get_metric_history(run, "train/other")) == 1


def test_an_odd_name_costs_no_point(client, run, sent, draft):
    (draft / "metrics.jsonl").write_text(line(metrics={"objective/rewards (2):f": 1.0, "train/loss": 1.5}))
    send_points(client, run, draft, sent)
    assert client.get_run(run).data.metrics == {"objective/rewards _2_:f": 1.0, "train/loss": 1.5}
