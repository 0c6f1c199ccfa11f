"""PPO runs that are interrupted, and what they should end like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.context import Execution
from tasks.rl.loop import Loop
from tests.tasks.rl.runs import Ran, World, run, same

DRAWS = """
import os, random, time
import numpy, torch

def score(prompts, completions):
    time.sleep(float(os.environ.get("SLEEPS", "0")))
    noise = [random.random() + numpy.random.rand() + float(torch.rand(())) for _ in prompts]
    return [text.count("a") + some for text, some in zip(completions, noise)]
"""
"""A reward that draws from every global random stream there is."""
EVERY_ROLLOUT = Execution(threads=1, device="cpu", save_interval=1)


def settings(world: World, **fields: Any) -> dict[str, Any]:
    """Everything on that keeps a state: six short rollouts in passes over ten prompts."""
    (world.folder / "noisy.py").write_text(DRAWS)
    return world.fields(
        **{
            "programs": {f"{world.folder}/noisy.py:score": 0.5}, "total_episodes": 24, "num_ppo_epochs": 1,
            "num_mini_batches": 2, "max_new_tokens": 5,
            "kl_controller": "adaptive", "target_kl": 0.05, "horizon": 40, "eval_rows": 2, "max_kl": 1e3,
            "ptx_coef": 0.1, "ptx_data": world.demonstrations, **fields,
        }
    )  # fmt: skip


class KilledError(Exception):
    """Stands for the end of a process."""


def interrupted(folder: Path, at: int, **fields: Any) -> None:
    """A run that dies before the rollout numbered `at`."""
    real = Loop._rollout

    def rollout(self: Loop, number: int) -> dict[str, float]:
        if number == at:
            raise KilledError
        return real(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Loop, "_rollout", rollout)
        run(folder, **fields)


def differences(one: Ran, other: Ran) -> set[str]:
    """In what two runs differ."""
    found = {
        "adapter": same(one.adapter(), other.adapter()),
        "metrics": one.lines() == other.lines(),
        "samples": one.lines("samples") == other.lines("samples"),
        "figures": one.figures() == other.figures(),
    }
    return {name for name, equal in found.items() if not equal}


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    made: dict[str, Ran] = {}

    def get(**fields: Any) -> Ran:
        if (name := repr(sorted(fields.items()))) not in made:
            made[name] = run(
                tmp_path_factory.mktemp("undisturbed"), **settings(world, **fields), execution=EVERY_ROLLOUT
            )
        return made[name]

    return get
