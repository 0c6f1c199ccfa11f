"""Killed anywhere and started again, PPO ends with the bytes of an undisturbed run; and these tests can fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.context import Execution
from tasks.rl.loop import Loop
from tasks.rl.state import STATE_FILE
from tasks.training import trainable
from tests.conftest import ROOT
from tests.left import timeless
from tests.tasks.forked import Forked, nothing
from tests.tasks.rl.resume_runs import EVERY_ROLLOUT, KilledError, differences, interrupted, settings
from tests.tasks.rl.runs import Ran, job_of, lines_in, run

pytestmark = pytest.mark.usefixtures("one_thread")


# Processes that are really killed


def dies_while_saving() -> None:
    """With half of a checkpoint's state on the disk."""
    real = torch.save

    def half(state: Any, path: Path) -> None:
        real(state, path)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


class Trainer:
    """`python -m tasks job.json`, as the flow starts it; or what that does, in a fork."""

    def __init__(self, job: Path, before: Callable[[], None] | None = None) -> None:
        environment = {"SLEEPS": "0.05", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process: subprocess.Popen[str] | Forked
        if before is not None:
            self.process = Forked(job, before, **environment)
            return
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks", str(job)], cwd=ROOT, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def killed_after(self, points: int, metrics: Path) -> int:
        """Kills it at a random moment once so many points are logged; gives how many there are then."""
        deadline = time.monotonic() + 300
        while not metrics.exists() or metrics.read_text().count("\n") < points:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0]
            time.sleep(0.01)
        time.sleep(random.random() / 10)
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL, "it was too fast to be killed"
        return metrics.read_text().count("\n")

    def ends(self, status: int) -> str:
        out = self.process.communicate(timeout=300)[0]
        assert self.process.returncode == status, out
        return out


def test_killed_twice_and_once_while_saving_it_ends_with_the_same_bytes(world, tmp_path):
    """Checkpoints every second rollout; the run that nobody disturbs is in this process, the last in a fresh one."""
    execution = Execution(threads=1, device="cpu", save_interval=4)
    fields = {**settings(world, total_episodes=64), "execution": execution}
    undisturbed = run(tmp_path / "undisturbed", **fields)
    draft = tmp_path / "draft"
    draft.mkdir()
    job = job_of(draft, **fields)
    (draft / "job.json").write_text(job.model_dump_json())

    Trainer(draft / "job.json", nothing).killed_after(3, draft / "metrics.jsonl")
    reached = Trainer(draft / "job.json", nothing).killed_after(6, draft / "metrics.jsonl")
    assert 6 <= reached < 16
    Trainer(draft / "job.json", dies_while_saving).ends(-signal.SIGKILL)
    assert [path.joinpath(STATE_FILE).exists() for path in (draft / "work" / "saving").iterdir()] == [True]
    assert "going on after " in Trainer(draft / "job.json").ends(0)

    finished = Ran(undisturbed.handle.model_copy(update={"path": draft / "out"}), {}, draft)
    assert differences(finished, undisturbed) <= {"figures"}
    for file in undisturbed.handle.path.iterdir():
        assert (draft / "out" / file.name).read_bytes() == file.read_bytes()
    result = json.loads((draft / "result.json").read_text())["metrics"]
    assert timeless(result) == undisturbed.figures()
    assert [line["step"] for line in finished.lines()] == list(range(4, 68, 4))


# Checkpoints that are torn


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / STATE_FILE, (checkpoint / STATE_FILE).stat().st_size // 2)


def flip(checkpoint: Path) -> None:
    content = bytearray((checkpoint / STATE_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / STATE_FILE).write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, lambda path: (path / "manifest.json").unlink(), lambda path: (path / STATE_FILE).unlink()],
    ids=["truncated", "one bit", "no manifest", "no state"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(world, undisturbed, tmp_path, damage, capsys):
    interrupted(tmp_path, 4, **settings(world), execution=EVERY_ROLLOUT)
    damage(tmp_path / "work" / "checkpoint-4")
    ran = run(tmp_path, **settings(world), execution=EVERY_ROLLOUT)
    assert "going on after 3 of 6 rollouts" in capsys.readouterr().out
    assert not differences(ran, undisturbed())


def test_without_any_whole_checkpoint_it_starts_anew(world, undisturbed, tmp_path):
    interrupted(tmp_path, 3, **settings(world), execution=EVERY_ROLLOUT)
    for checkpoint in (tmp_path / "work").iterdir():
        truncate(checkpoint)
    assert not differences(run(tmp_path, **settings(world), execution=EVERY_ROLLOUT), undisturbed())


def test_another_save_interval_leaves_the_bytes_as_they_are(world, undisturbed, tmp_path):
    seldom = Execution(threads=1, device="cpu", save_interval=6)
    interrupted(tmp_path, 5, **settings(world), execution=seldom)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["checkpoint-3"]
    assert not differences(run(tmp_path, **settings(world), execution=EVERY_ROLLOUT), undisturbed())


def test_a_torn_checkpoint_of_an_earlier_attempt_never_crowds_out_a_whole_one(world, tmp_path, capsys):
    """Saved every second rollout, torn at rollout 4; then every rollout is saved, and one checkpoint kept."""
    one = Execution(threads=1, device="cpu", save_interval=1, keep_checkpoints=1)
    two = Execution(threads=1, device="cpu", save_interval=4, keep_checkpoints=1)
    interrupted(tmp_path, 3, **settings(world), execution=two)
    (tmp_path / "work" / "checkpoint-4").mkdir()
    interrupted(tmp_path, 3, **settings(world), execution=one)
    capsys.readouterr()
    run(tmp_path, **settings(world), execution=one)
    assert "going on after 3 of 6 rollouts" in capsys.readouterr().out


# Killed at awkward moments


def test_killed_while_it_cuts_the_log_no_point_is_lost(world, undisturbed, tmp_path):
    interrupted(tmp_path, 4, **settings(world), execution=EVERY_ROLLOUT)
    shutil.rmtree(tmp_path / "work" / "checkpoint-4")
    real = Path.write_text

    def half(self: Path, text: str, *more: Any, **options: Any) -> int:
        if not self.name.startswith("metrics"):
            return real(self, text, *more, **options)
        real(self, text[: len(text) // 2])
        raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Path, "write_text", half)
        run(tmp_path, **settings(world), execution=EVERY_ROLLOUT)
    assert not differences(run(tmp_path, **settings(world), execution=EVERY_ROLLOUT), undisturbed())


def test_killed_inside_a_line_of_the_log_the_line_is_written_again(world, undisturbed, tmp_path):
    interrupted(tmp_path, 4, **settings(world), execution=EVERY_ROLLOUT)
    shutil.rmtree(tmp_path / "work" / "checkpoint-4")
    for name in ("metrics.jsonl", "samples.jsonl"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 7)
    assert not differences(run(tmp_path, **settings(world), execution=EVERY_ROLLOUT), undisturbed())


def killed_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, folder: Path, **fields: Any) -> None:
    def dies(*given: Any, **more: Any) -> Any:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(owner, name, dies)
        run(folder, **fields)


def test_killed_after_the_last_rollout_it_trains_no_more(world, undisturbed, tmp_path, monkeypatch):
    fields = {**settings(world), "execution": EVERY_ROLLOUT}
    killed_in(monkeypatch, trainable, "save_trained", tmp_path, **fields)
    assert len(lines_in(tmp_path)) == 6
    monkeypatch.setattr(Loop, "_rollout", lambda *given: pytest.fail("trains on"))
    assert not differences(run(tmp_path, **fields), undisturbed())


@pytest.mark.parametrize("limit", [{"max_kl": 1e-6}, {"early_stop_kl": 1e-9}], ids=["max_kl", "early_stop_kl"])
def test_killed_after_a_limit_has_ended_training_it_does_not_train_on(world, undisturbed, tmp_path, monkeypatch, limit):
    """The checkpoint of the last rollout is there, but not yet the output."""
    killed_in(monkeypatch, trainable, "save_trained", tmp_path, **settings(world, **limit), execution=EVERY_ROLLOUT)
    ran = run(tmp_path, **settings(world, **limit), execution=EVERY_ROLLOUT)
    assert not differences(ran, undisturbed(**limit))
