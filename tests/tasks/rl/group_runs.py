"""Small runs of RLOO and GRPO, for the tests of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.context import Execution
from tasks.rl import group_trainer

BOTH = pytest.mark.parametrize("uses", ["rloo", "grpo"])
SCORERS = Path(__file__).with_name("scorers.py")
SMALL = {
    "max_new_tokens": 6, "num_generations": 4, "batch_size": 8, "total_episodes": 24, "learning_rate": 1e-2,
    "eval_rows": 0,
}  # fmt: skip


def program(name, weight=1.0):
    return {f"{SCORERS}:{name}": weight}


@pytest.fixture(scope="session")
def tiny(kitchen, sft, pairs):
    """A stage of three rollouts of two groups of four; by default on a reward that any two completions differ in."""

    def make(uses, execution=None, **fields):
        given = {"policy": sft.handle, "data": pairs.handle, **SMALL, **fields}
        rewards = {} if fields.keys() & {"reward", "programs"} else {"programs": program("letters")}
        return kitchen.make(uses, execution or Execution(threads=2), **given, **rewards)

    return make


@pytest.fixture
def watch(monkeypatch):
    """The TRL trainers that are made from here on."""
    found, train_on = [], group_trainer.train_on

    def watched(running, *args):
        found.append(running)
        return train_on(running, *args)

    monkeypatch.setattr(group_trainer, "train_on", watched)
    return found


def logged(made, name):
    return [point["metrics"][name] for point in made.points() if name in point["metrics"]]


def bytes_of(made):
    return (made.handle.path / "adapter_model.safetensors").read_bytes()
