"""PPO's steps: how many, on which rows, at which rates, and that their grouping changes nothing but rounding."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from tasks.context import Execution
from tasks.ppo import PPO
from tasks.rl.loop import Loop
from tasks.training.rows import load_rows
from tests.tasks.rl.runs import (
    ONE_THREAD,
    furthest,
    loop_of,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (2, 4), (1, 2)])
def test_every_minibatch_of_every_epoch_of_every_rollout_is_one_step(world, epochs, minibatches, tmp_path, monkeypatch):
    """20 episodes from 10 prompts: the third rollout of 4 crosses the end of the first pass over the data."""
    taken: Counter[int] = Counter()
    real = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (taken.update([id(self)]), real(self))[1])
    fields = world.fields(total_episodes=20, num_ppo_epochs=epochs, num_mini_batches=minibatches)
    execution = Execution(threads=1, device="cpu", micro_batch=1)
    ran = run(tmp_path, execution=execution, **fields)
    assert list(taken.values()) == [5 * epochs * minibatches] * 2
    assert [line["optimizer_step"] for line in ran.lines()] == [n * epochs * minibatches for n in range(1, 6)]
    assert [line["step"] for line in ran.lines()] == [4, 8, 12, 16, 20]


def test_the_plan_promises_the_steps_that_are_taken(world):
    stage = PPO.model_validate(world.fields(batch_size=4, total_episodes=None, num_ppo_epochs=3, num_mini_batches=2))
    assert stage.rollouts(10) == 3 and stage.steps(10) == 18
    assert PPO.model_validate(world.fields(total_episodes=1)).rollouts(10) == 1


def test_prompts_come_in_passes_each_shuffled_anew(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields(total_episodes=40))
    rows = [row["row"] for number in range(10) for row in loop._prompts(number)]
    passes = [rows[at : at + 10] for at in range(0, 40, 10)]
    assert all(sorted(one) == list(range(1, 11)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_minibatches_are_a_fresh_partition_in_every_epoch_and_rollout(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields(batch_size=8, num_mini_batches=2), execution=ONE_THREAD)
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    seen = set()
    for number, epoch in itertools.product(range(3), range(3)):
        minibatches = [[row for part in parts for row in part] for parts in loop._minibatches(number, epoch, lengths)]
        assert [len(rows) for rows in minibatches] == [4, 4]
        assert sorted(itertools.chain(*minibatches)) == list(range(8))
        seen.add(frozenset(map(frozenset, minibatches)))
    assert len(seen) > 5


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_micro_batch_changes_nothing_but_rounding(cached, world, micro_batch, tmp_path):
    """Ragged completions and prompts, two minibatches: a mean of means would be far off."""
    fields = {"batch_size": 8, "total_episodes": 8, "num_mini_batches": 2, "num_ppo_epochs": 3, "learning_rate": 1e-3}
    whole = cached(**fields)
    execution = Execution(threads=1, device="cpu", micro_batch=micro_batch)
    split = run(tmp_path, execution=execution, **world.fields(**fields))
    assert furthest(split.adapter(), whole.adapter()) < 1e-5 and furthest(split.value(), whole.value()) < 1e-5
    assert whole.only("completions/mean_length")[0] % 1, "ragged"
    assert split.points()[0] == pytest.approx(whole.points()[0], abs=1e-4)


def test_the_order_of_the_rows_in_a_minibatch_changes_nothing_but_rounding(cached, world, tmp_path, monkeypatch):
    fields = {"batch_size": 8, "total_episodes": 8, "learning_rate": 1e-3}
    real = Loop._minibatches
    monkeypatch.setattr(
        Loop, "_minibatches", lambda *given: [[part[::-1] for part in reversed(parts)] for parts in real(*given)]
    )
    turned = run(tmp_path, **world.fields(**fields))
    assert furthest(turned.adapter(), cached(**fields).adapter()) < 1e-5


def test_the_rates_rise_and_fall_as_the_schedule_says():
    def factors(steps: int, **fields: Any) -> list[float]:
        stage = PPO.model_construct(**fields)
        return [stage.rate_factor(step, steps) for step in range(steps)]

    assert factors(4, schedule="constant", warmup_ratio=0.0) == [1, 1, 1, 1]
    assert factors(4, schedule="linear", warmup_ratio=0.0) == [1, 0.75, 0.5, 0.25]
    assert factors(6, schedule="linear", warmup_ratio=0.34) == pytest.approx([1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])
    assert factors(4, schedule="cosine", warmup_ratio=0.0)[2] == pytest.approx(0.5)


def test_both_optimizers_use_the_scheduled_rates(world, tmp_path, monkeypatch):
    used: list[float] = []
    real = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (used.append(self.param_groups[0]["lr"]), real(self))[1])
    run(tmp_path, **world.fields(learning_rate=4e-3, value_learning_rate=8e-3))
    assert used == pytest.approx([4e-3, 8e-3, 3e-3, 6e-3, 2e-3, 4e-3, 1e-3, 2e-3])


def test_the_prompts_of_the_test_split_are_never_trained_on(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields(eval_rows=6))
    test = {tuple(row["prompt_ids"]) for row in load_rows(world.data, "test")}
    assert {tuple(row["prompt_ids"]) for row in loop.tests} == test
    assert not test & {tuple(row["prompt_ids"]) for row in loop.rows}
