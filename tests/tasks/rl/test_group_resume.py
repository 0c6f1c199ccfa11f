"""RLOO and GRPO that fail, die or are killed, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from artifacts.errors import StageError
from artifacts.fingerprint import digest
from tasks.context import Execution
from tasks.job import Job
from tasks.rl import group_trainer
from tests.conftest import ROOT
from tests.tasks.forked import Forked
from tests.tasks.rl.group_runs import BOTH, SMALL, bytes_of, program

pytestmark = pytest.mark.usefixtures("one_thread")


@BOTH
def test_a_reward_that_raises_ends_the_stage_and_a_second_try_goes_on(tiny, uses):
    often = Execution(threads=2, save_interval=1)
    small = {"batch_size": 4, "total_episodes": 24}
    for module in [name for name in sys.modules if name == "scorers"]:
        del sys.modules[module]
    with pytest.raises(StageError, match="raised OSError: the judge is out for lunch on row"):
        tiny(uses, often, programs=program("once_in_a_while"), **small)
    again, undisturbed = tiny(uses, often, programs=program("once_in_a_while"), **small), tiny(uses, **small)
    assert bytes_of(again) == bytes_of(undisturbed)
    renamed = [{**point, "metrics": without_scorer(point["metrics"])} for point in comparable(again)]
    assert renamed == [{**point, "metrics": without_scorer(point["metrics"])} for point in comparable(undisturbed)]


def without_scorer(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("scores/")}


def comparable(made_or_folder):
    """The points without what time decides."""
    folder = getattr(made_or_folder, "folder", made_or_folder)
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for point in points:
        del point["time"]
        point["metrics"].pop("train/tokens_per_second", None)
    return points


@BOTH
def test_dying_after_the_last_checkpoint_repeats_nothing(tiny, uses, monkeypatch):
    fields = {"eval_rows": 3}
    undisturbed = tiny(uses, **fields)

    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(group_trainer, "save_trained", dies)
        with pytest.raises(KeyboardInterrupt):
            tiny(uses, Execution(threads=2, keep_checkpoints=3), **fields)
    again = tiny(uses, Execution(threads=2, keep_checkpoints=3), **fields)
    assert bytes_of(again) == bytes_of(undisturbed)
    assert comparable(again) == comparable(undisturbed)
    assert again.metrics == undisturbed.metrics


@BOTH
def test_a_run_that_is_killed_goes_on_to_the_same_bytes_and_points(kitchen, sft, pairs, uses, tmp_path, capsys):
    """Saving asks for every step; a checkpoint can only stand between two rollouts, of two steps each."""
    fields = {**SMALL, "num_iterations": 2, "total_episodes": 48, "eval_rows": 3, "programs": program("slowly")}
    stage = kitchen.stage(uses, policy=sft.handle, data=pairs.handle, **fields)
    execution = Execution(threads=1, device="cpu", save_interval=1)
    jobs = []
    for name in ("killed", "undisturbed"):
        (draft := tmp_path / name).mkdir()
        jobs.append(Job.of(stage, uses=uses, key=name * 4, seed=0, execution=execution, draft=draft))
    kill_after_a_checkpoint(jobs[0])
    steps = sorted(int(path.name.split("-")[1]) for path in (jobs[0].draft / "work").glob("checkpoint-*"))
    assert steps[0] > 0 and steps[-1] < 12 and all(step % 2 == 0 for step in steps)
    metrics = [job.stage().run(job.context(events=False)) for job in jobs]
    assert capsys.readouterr().out.count("going on from checkpoint-") == 1
    assert metrics[0] == metrics[1]
    assert digest_of(jobs[0].draft / "out") == digest_of(jobs[1].draft / "out")
    assert comparable(jobs[0].draft) == comparable(jobs[1].draft)


def kill_after_a_checkpoint(job):
    """Run it in a process of its own, GRPO's in a fork, and kill that as soon as there is a complete checkpoint."""
    path = job.draft / "job.json"
    path.write_text(job.model_dump_json())
    environment = {"SCORER_SLEEPS": "0.5", "HF_HUB_OFFLINE": "1"}
    if job.uses == "grpo":
        process = Forked(path, **environment)
    else:
        process = subprocess.Popen([sys.executable, "-m", "tasks", str(path)], cwd=ROOT, env=os.environ | environment)
    try:
        deadline = time.monotonic() + 600
        while not list(job.draft.glob("work/checkpoint-*/manifest.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def digest_of(folder):
    return digest({path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())})
