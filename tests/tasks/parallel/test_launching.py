"""Under `accelerate launch`, as a flow starts it: asked to end, killed in part and in whole, it goes on to the bytes of
an undisturbed run, and nobody is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks.ending import Ending
from tasks.parallel.launching import _together, member_ids, members
from tests.conftest import ROOT
from tests.left import left_in
from tests.tasks.parallel.conftest import run_here
from tests.tasks.parallel.members import Members
from tests.tasks.parallel.stages import DEEPSPEED

PATIENCE_S = 240


class Started:
    """`python -m tasks job.json`."""

    def __init__(self, draft: Path) -> None:
        self.draft = draft
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks", str(draft / "job.json")], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=os.environ, start_new_session=True,
        )  # fmt: skip

    def saved(self, step: int) -> list[int]:
        """Waits until a checkpoint of this step or a later one counts; gives the ids of its processes."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(int(path.name[11:]) >= step for path in (self.draft / "work").glob("checkpoint-*")):
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0]
            time.sleep(0.02)
        return member_ids(self.draft)

    def ends(self) -> tuple[int, str]:
        out = self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode, out

    def result(self) -> dict[str, Any]:
        return json.loads((self.draft / "result.json").read_text())


def gone(ids: list[int]) -> bool:
    """Whether none of these processes is there any more, a moment after."""
    deadline = time.monotonic() + 10
    while (left := [one for one in ids if Path(f"/proc/{one}/exe").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


@pytest.mark.slow
def test_asked_to_end_and_killed_it_goes_on_to_the_bytes_of_an_undisturbed_run(ran, job_of):
    often = {"save_interval": 1, "keep_checkpoints": 1}
    undisturbed, draft = ran("sft for long", 2, **often), job_of("sft for long", processes=2, **often).draft

    asked = Started(draft)
    asked.saved(2)
    os.kill(asked.process.pid, signal.SIGTERM)
    status, out = asked.ends()
    assert status == 130 and asked.result()["error"] == "InterruptedStage", out
    (checkpoint,) = (draft / "work").glob("checkpoint-*")
    assert f"error: ended as asked, after {checkpoint.name}; run the same command again to go on" in out

    lost = Started(draft)
    ids = lost.saved(int(checkpoint.name[11:]) + 2)
    os.kill(ids[-1], signal.SIGKILL)
    status, out = lost.ends()
    assert status == 1 and gone(ids), out
    assert " of 2 was killed; run the same command again to go on" in lost.result()["message"]
    assert f"going on from {checkpoint.name}" in out

    killed = Started(draft)
    ids = killed.saved(max(int(path.name[11:]) for path in (draft / "work").glob("checkpoint-*")) + 2)
    assert len(ids) == 2
    killed.process.kill()
    killed.process.communicate()
    assert gone(ids), "processes are left over"

    status, out = Started(draft).ends()
    assert status == 0, out
    left, wanted = left_in(draft), left_in(undisturbed.draft)
    assert left.digests == wanted.digests
    assert left.points == wanted.points


def test_two_processes_under_the_launcher_end_with_the_bytes_of_two_without(ran, job_of):
    """So what the other tests fork is what `accelerate launch` starts."""
    draft = job_of("sft", processes=2).draft
    status, out = Started(draft).ends()
    assert status == 0, out
    left, wanted = left_in(draft), left_in(ran("sft", 2).draft)
    assert (left.digests, left.points, left.figures) == (wanted.digests, wanted.points, wanted.figures)
    assert out.count("trains 8,192 of") == 1, "more than one process speaks"


@pytest.mark.parametrize(
    ("name", "mode"),
    [("sft", "ddp"), ("sft", "fsdp"), ("reward", "ddp"), ("dpo", "ddp"), ("kto", "ddp"), ("orpo", "ddp")]
    + [pytest.param(name, *DEEPSPEED.values, marks=DEEPSPEED.marks) for name in ("sft", "sft whole", "reward", "dpo")],
)
def test_killed_amid_training_two_processes_go_on_to_the_same_bytes(ran, job_of, name, mode):
    often = {"save_interval": 1, "keep_checkpoints": 1, "mode": mode}
    undisturbed, job = ran(name, 2, mode), job_of(name, processes=2, **often)
    first = Members(job, before=partial(dying, signal.SIGKILL, 3))
    assert -signal.SIGKILL in first.end()
    assert [path.name for path in (job.draft / "work").glob("checkpoint-*")] == ["checkpoint-2"]
    asked = Members(job, before=partial(dying, signal.SIGTERM, 4))
    assert asked.end() == [130, 130]
    assert [path.name for path in (job.draft / "work").glob("checkpoint-*")] == ["checkpoint-4"]
    assert run_here(job) == [0, 0], (job.draft / "log.txt").read_text()
    said = (job.draft / "log.txt").read_text()
    assert "going on from checkpoint-2, after 2 of " in said and "going on from checkpoint-4" in said
    left, wanted = left_in(job.draft), left_in(undisturbed.draft)
    assert (left.digests, left.points, left.figures) == (wanted.digests, wanted.points, wanted.figures)


@pytest.mark.parametrize("mode", ["fsdp", DEEPSPEED])
def test_killed_once_it_has_trained_it_goes_on_from_the_last_checkpoint(ran, job_of, mode):
    undisturbed, job = ran("sft", 2, mode), job_of("sft", processes=2, mode=mode, keep_checkpoints=1)
    assert -signal.SIGKILL in Members(job, before=dying_before_it_saves).end()
    assert [path.name for path in (job.draft / "work").glob("checkpoint-*")] == ["checkpoint-8"]
    assert run_here(job) == [0, 0], (job.draft / "log.txt").read_text()
    left, wanted = left_in(job.draft), left_in(undisturbed.draft)
    assert (left.digests, left.points, left.figures) == (wanted.digests, wanted.points, wanted.figures)


def dying_before_it_saves(rank: int) -> None:
    from tasks.training import trainable

    trainable.save_trained = lambda *given: os.kill(os.getpid(), signal.SIGKILL)


def test_killed_between_rollouts_two_processes_go_on_to_the_same_policy(ran, job_of):
    often = {"save_interval": 1, "keep_checkpoints": 1}
    undisturbed, job = ran("ppo", 2), job_of("ppo", processes=2, **often)
    assert -signal.SIGKILL in Members(job, before=partial(dying_before_rollout, 2)).end()
    assert [path.name for path in (job.draft / "work").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run_here(job) == [0, 0], (job.draft / "log.txt").read_text()
    assert "going on " in (job.draft / "log.txt").read_text()
    left, wanted = left_in(job.draft), left_in(undisturbed.draft)
    assert (left.digests, left.points, left.figures) == (wanted.digests, wanted.points, wanted.figures)


def dying_before_rollout(at: int, rank: int) -> None:
    """In the second process alone."""
    from tasks.rl.loop import Loop

    real = Loop._rollout

    def rollout(self: Loop, number: int) -> dict[str, float]:
        if number == at and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, number)

    Loop._rollout = rollout  # type: ignore[method-assign]


def dying(number: int, step: int, rank: int) -> None:
    """In the second process alone: a signal at the end of an optimizer step, before its checkpoint."""
    from tasks.training.recorder import StepRecorder

    real = StepRecorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step and rank == 1:
            os.kill(os.getpid(), number)
        real(self, args, state, control, **more)

    StepRecorder.on_step_end = on_step_end  # type: ignore[method-assign]


def test_more_processes_than_cores_are_refused_where_the_job_runs(job_of):
    job = job_of("sft", processes=2)
    (job.draft / "job.json").write_text(
        job.model_dump_json().replace('"processes":2', '"processes":4096')
    )  # planned on a larger machine
    started = Started(job.draft)
    status, out = started.ends()
    assert status == 2 and "wanted at most" in out and "4096" in out
    assert not members(job.draft).exists()


def ending(error: str | None, message: str = "", *, at: float, ours: bool = True) -> Ending:
    if error is None:
        metrics = {"cost/peak_memory_bytes": 8.0, "train/loss": at}
        return Ending(status=0, result={"metrics": metrics, "seconds": 1.0}, at=at)
    return Ending(status=1, result={"error": error, "message": message}, ours=ours, at=at)


LOST = ending("RuntimeError", "RuntimeError: [gloo] Connection closed by peer", at=1, ours=False)


@pytest.mark.parametrize(
    ("endings", "said"),
    [
        ([LOST, ending("OutOfMemoryError", "peak 3 GiB", at=2)], "peak 3 GiB"),
        ([ending("NumberError", "row 7", at=2), ending("NumberError", "row 9", at=1)], "row 9"),
        (
            [ending("InterruptedStage", "ended", at=1), ending("KeyError", "3", at=2, ours=False)],
            "3",
        ),
        ([LOST, None], "process 2 of 2 was killed; run the same command again to go on"),
        ([ending("InterruptedStage", "ended", at=1)] * 2, "ended"),
    ],
)
def test_of_several_endings_the_one_that_says_most_is_told(endings, said):
    assert _together(endings).result["message"] == said


def test_a_good_end_is_the_firsts_with_the_memory_of_all():
    together = _together([ending(None, at=1), ending(None, at=2)])
    assert together.result["metrics"] == {"cost/peak_memory_bytes": 16.0, "train/loss": 1}


def test_a_process_that_left_no_ending_is_asked_about_at_the_kernel(tmp_path):
    folder = members(tmp_path)
    folder.mkdir(parents=True)
    for rank, number in enumerate((11, 12)):
        (folder / f"{rank}.pid").write_text(str(number))
    (folder / "0.json").write_text(LOST.model_dump_json())
    assert member_ids(tmp_path) == [12]
