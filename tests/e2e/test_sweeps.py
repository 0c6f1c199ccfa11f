"""Sweeps through the command that users type: what is shared, several stages at a time, and how they are ended."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.test_tiny import processes_with

pytestmark = pytest.mark.e2e

SWEEP = ("run", "pipelines/tiny.yaml", "dpo.beta=0.2|0.4", "dpo.max_steps=6", "--until", "dpo")


def test_two_at_a_time_make_the_bytes_that_each_makes_alone(first, shop):
    """What stands before the branches is made once, each branch is a run of its own in MLflow, below one parent."""
    from mlflow.tracking import MlflowClient

    answer = shop.align(*SWEEP, "--jobs", "2", "--json")
    branches = ["dpo@beta=0.2", "dpo@beta=0.4"]
    assert answer.statuses == {
        "base": "cached", "instructions": "cached", "pairs": "cached", "sft": "cached", **dict.fromkeys(branches, "ran")
    }, answer.err  # fmt: skip
    said = answer.err.splitlines()
    assert said.index("dpo@beta=0.4: starts") < next(
        place for place, line in enumerate(said) if line.startswith("dpo@beta=0.2: ran")
    )
    client = MlflowClient(f"sqlite:///{shop.home}/mlflow.db")
    runs = [client.get_run(answer.stage(name)["mlflow_run_id"]) for name in branches]
    assert [run.info.run_name for run in runs] == branches
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {answer.json["mlflow_run_id"]}
    parent = client.get_run(answer.json["mlflow_run_id"])
    assert parent.data.tags["align.stage.dpo_beta_0.2"] == runs[0].info.run_id
    home, before = shop.home.parent / "alone", ("base", "instructions", "pairs", "sft")
    for result in (Path(first.stage(name)["path"]).parent for name in before):
        shutil.copytree(result, home / "store" / result.name, copy_function=os.link)
    alone = shop.align(
        "run", "pipelines/tiny.yaml", "dpo.beta=0.4", "dpo.max_steps=6", "--until", "dpo", "--json",
        "--offline-tracking", ALIGN_HOME=str(home),
    )  # fmt: skip
    assert alone.statuses == {**dict.fromkeys(before, "cached"), "dpo": "ran"}, alone.err
    assert alone.stage("dpo")["digest"] == answer.stage("dpo@beta=0.4")["digest"]


@pytest.mark.slow
def test_ctrl_c_lets_both_save_and_the_same_command_goes_on_with_both(first, shop):
    words = ("run", "pipelines/tiny.yaml", "dpo.beta=0.2|0.4", "dpo.epochs=25", "--until", "dpo", "--jobs", "2")
    process = shop.start(*words, "--exec", "save_interval=1000")
    before = set((shop.home / "drafts").glob("dpo-*"))
    deadline = time.monotonic() + 240
    while len(drafts := [one for one in set((shop.home / "drafts").glob("dpo-*")) - before
                         if (one / "metrics.jsonl").exists()]) < 2:  # fmt: skip
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130 and "run the same command again" in err and "Traceback" not in err, err
    for draft in drafts:
        assert not processes_with(str(draft / "job.json"))
        assert list((draft / "work").glob("checkpoint-*/manifest.json"))
    again = shop.align(*words, "--json")
    assert {name: status for name, status in again.statuses.items() if name.startswith("dpo")} == {
        "dpo@beta=0.2": "resumed", "dpo@beta=0.4": "resumed"
    }, again.err  # fmt: skip


def test_too_many_branches_and_no_jobs_are_refused_at_once(first, shop):
    many = shop.align("run", "pipelines/tiny.yaml", "dpo.beta=" + "|".join(map(str, range(1, 18))))
    assert many.status == 2 and "wanted at most 16 branches, got 17" in many.err and "--yes" in many.err
    none = shop.align(*SWEEP, "--jobs", "0")
    assert none.status == 2 and "jobs: wanted 1 or more, got 0" in none.err
