"""Training that computes no numbers, or nothing at all, ends before it is stepped on, and says on which rows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import trl

from artifacts.errors import NumberError
from tasks.context import Execution
from tasks.job import Job
from tasks.training.rows import load_rows

EXECUTION = Execution(threads=1, device="cpu", micro_batch=4, save_interval=2)
SMALL = {"learning_rate": 1e-3, "eval_rows": 0}


class Broken:
    """A TRL trainer whose losses from micro-batch `at` on, counted from 0, are multiplied; keeps what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trainer: Any, at: int, factor: float, *, slope: float = 1.0):
        self.inputs: list[list[list[int]]] = []
        real = trainer.compute_loss

        def compute_loss(this: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.inputs.append(inputs["input_ids"].tolist() if "input_ids" in inputs else [])
            loss = real(this, model, inputs, *args, **kwargs)
            if len(self.inputs) <= at:
                return loss
            if slope != 1.0:
                loss.register_hook(lambda gradient: gradient * slope)
            return loss * factor

        monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def job_of(kitchen: Any, draft: Path, uses: str, **fields: Any) -> Job:
    draft.mkdir(exist_ok=True)
    stage = kitchen.stage(uses, **SMALL, **fields)
    return Job.of(stage, uses=uses, key="k" * 8, seed=0, execution=EXECUTION, draft=draft)


def failure(job: Job) -> str:
    with pytest.raises(NumberError) as caught:
        job.stage().run(job.context(events=False))
    return str(caught.value)


def rows_named(message: str) -> list[int]:
    found = re.search(r"on the rows ([\d, ]+);", message)
    assert found, message
    return [int(number) for number in found[1].split(", ")]


@pytest.fixture
def sft_job(kitchen, base, demonstrations, tmp_path) -> Job:
    fields = {"base": base.handle, "data": demonstrations.handle, "lora": {"rank": 4, "alpha": 8}}
    return job_of(kitchen, tmp_path / "draft", "sft", **fields)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_step_rows_and_the_last_good_checkpoint(sft_job, monkeypatch, value):
    """Two micro-batches make a step: the fifth is of step 3."""
    broken = Broken(monkeypatch, trl.SFTTrainer, at=4, factor=value)
    said = failure(sft_job)
    assert f"the loss became {value} at step 3" in said and "the last good checkpoint is checkpoint-2" in said
    rows = {row["row"]: row["prompt_ids"] + row["completion_ids"] for row in load_rows(sft_job.stage().data, "train")}
    named = [rows[number] for number in rows_named(said)]
    assert len(named) == 8
    for ids in broken.inputs[4]:
        assert any(ids[: len(row)] == row for row in named), "what broke is among the rows that are named"
    points = [json.loads(line) for line in (sft_job.draft / "metrics.jsonl").read_text().splitlines()]
    assert [point["optimizer_step"] for point in points if "train/loss" in point["metrics"]] == [1, 2]


def test_a_gradient_that_is_no_number_is_never_stepped_on(sft_job, monkeypatch):
    Broken(monkeypatch, trl.SFTTrainer, at=4, factor=1.0, slope=math.nan)
    said = failure(sft_job)
    assert "the gradient became infinite or no number at step 3" in said and "checkpoint-2" in said


def test_learning_nothing_from_the_start_is_an_error_and_no_success(sft_job, monkeypatch):
    Broken(monkeypatch, trl.SFTTrainer, at=0, factor=0.0)
    said = failure(sft_job)
    assert "exactly 0" in said and "at step 1" in said and "there is no checkpoint yet" in said


def test_a_loss_that_is_0_later_on_is_none(sft_job, monkeypatch):
    """Everything may be learned in the end."""
    Broken(monkeypatch, trl.SFTTrainer, at=4, factor=0.0)
    assert sft_job.stage().run(sft_job.context(events=False))["train/loss"] == 0.0


def test_pairs_and_prompts_are_named_by_their_rows_too(kitchen, sft, pairs, tmp_path, monkeypatch):
    known = {row["row"] for row in load_rows(pairs.handle, "train")}
    with monkeypatch.context() as patch:
        Broken(patch, trl.DPOTrainer, at=4, factor=math.nan)
        said = failure(job_of(kitchen, tmp_path / "dpo", "dpo", policy=sft.handle, data=pairs.handle))
    assert "nan at step 3" in said and len(rows_named(said)) == 8 and set(rows_named(said)) <= known
    scorer = f"{Path(__file__).parents[1] / 'rl' / 'scorers.py'}:letters"
    groups = {"num_generations": 4, "batch_size": 8, "total_episodes": 24, "max_new_tokens": 6}
    Broken(monkeypatch, trl.RLOOTrainer, at=2, factor=math.nan)
    said = failure(
        job_of(kitchen, tmp_path / "rloo", "rloo", policy=sft.handle, data=pairs.handle, programs={scorer: 1}, **groups)
    )
    assert "nan at step 2" in said and len(rows_named(said)) == 2 and set(rows_named(said)) <= known
