"""What one machine has made, another with an empty home finds by key: results and, of what is unfinished, a checkpoint.

A real MLflow server over HTTP with an S3-compatible artifact store (moto's, on loopback); a machine is a home.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.conftest import Answer, Shop
from tests.e2e.mlflow_servers import Mlflow
from tests.e2e.servers import answers, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
BUCKET = "align"


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory) -> Iterator[Mlflow]:
    import boto3

    port = free_port()
    store = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not answers(port, "/moto-api/"):
        assert store.poll() is None
        time.sleep(0.2)
    account = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    where = f"http://127.0.0.1:{port}"
    boto3.client("s3", endpoint_url=where, aws_access_key_id="key", aws_secret_access_key="secret",
                 region_name="us-east-1").create_bucket(Bucket=BUCKET)  # fmt: skip
    server = Mlflow(tmp_path_factory.mktemp("mlflow"), f"s3://{BUCKET}/runs", **account, MLFLOW_S3_ENDPOINT_URL=where)
    server.start()
    yield server
    server.stop()
    store.terminate()
    store.wait()


def run(shop: Shop, mlflow: Mlflow, *words: str) -> Answer:
    answer = shop.align("run", "pipelines/tiny.yaml", *words, "--json", MLFLOW_TRACKING_URI=mlflow.uri)
    assert answer.status == 0, answer.err
    return answer


def digests(answer: Answer) -> dict[str, str]:
    return {stage["name"]: stage["digest"] for stage in answer.json["stages"]}


def test_finished_stages_are_fetched_and_not_made_again(mlflow, tmp_path):
    here, there = Shop(tmp_path / "here"), Shop(tmp_path / "there")
    made = run(here, mlflow, "--until", "sft")
    fetched = run(there, mlflow, "--until", "sft")
    assert set(fetched.statuses.values()) == {"cached"}, fetched.err
    assert digests(fetched) == digests(made)
    assert fetched.err.count("fetched from") == len(made.json["stages"])
    assert [stage["mlflow_run_id"] for stage in fetched.json["stages"]] == [
        stage["mlflow_run_id"] for stage in made.json["stages"]
    ]
    for stage in fetched.json["stages"]:
        assert Path(stage["path"]).is_relative_to(there.home)


def test_an_unfinished_stage_goes_on_from_its_newest_checkpoint_in_the_same_run(mlflow, tmp_path):
    words = ["--until", "sft", "sft.epochs=30", "--exec", "save_interval=20"]
    here, there, undisturbed = (Shop(tmp_path / name) for name in ("here", "there", "undisturbed"))
    client = MlflowClient(mlflow.uri)
    first = here.start("run", "pipelines/tiny.yaml", *words, MLFLOW_TRACKING_URI=mlflow.uri)
    deadline = time.monotonic() + 180
    while not (run_id := next(here.home.glob("tracking/sft-*/server-*/run_id"), None)) or not any(
        each.is_dir for each in client.list_artifacts(run_id.read_text(), "checkpoints")
    ):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()
        time.sleep(0.2)
    time.sleep(3)
    first.kill()
    first.communicate()
    whole = undisturbed.align("run", "pipelines/tiny.yaml", *words, "--json")
    answer = run(there, mlflow, *words)
    assert answer.statuses["sft"] == "resumed" and "goes on from checkpoint-" in answer.err
    assert digests(answer) == digests(whole)
    stage = answer.stage("sft")
    assert stage["mlflow_run_id"] == run_id.read_text()
    points = client.get_metric_history(stage["mlflow_run_id"], "train/loss")
    lines = [json.loads(line) for line in (Path(stage["path"]).parent / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line["metrics"]]
    assert sorted(point.step for point in points) == sorted(steps) == sorted(set(steps))
