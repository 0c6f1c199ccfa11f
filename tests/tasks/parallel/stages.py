"""The stages that the tests run in one process and in two: a tiny model, batches of 8, two epochs and a half."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from tasks.context import Execution
from tasks.parallel.settings import Launch, Mode

TRAINING = {"learning_rate": 3e-3, "epochs": 2.5, "eval_rows": 4}
LORA = {"rank": 4, "alpha": 8}
PPO = {
    "batch_size": 8, "total_episodes": 24, "num_ppo_epochs": 2, "num_mini_batches": 2, "max_new_tokens": 8,
    "eval_rows": 3, "kl_controller": "adaptive", "ptx_coef": 0.1,
}  # fmt: skip

FIELDS: dict[str, Callable[[Any, Any, Any, Any], dict[str, Any]]] = {
    "sft": lambda base, sft, data, world: {"base": base, "data": data["demonstrations"], "lora": LORA, **TRAINING},
    "sft for long": lambda base, sft, data, world: {
        "base": base, "data": data["demonstrations"], "lora": LORA, **TRAINING, "max_steps": 60,
    },
    "sft whole": lambda base, sft, data, world: {
        "base": base, "data": data["demonstrations"], "lora": None, **TRAINING, "learning_rate": 1e-3,
    },
    "reward": lambda base, sft, data, world: {"base": base, "data": data["preferences"], "lora": LORA, **TRAINING},
    "dpo": lambda base, sft, data, world: {"policy": sft, "data": data["preferences"], **TRAINING},
    "dpo with sft_weight": lambda base, sft, data, world: {
        "policy": sft, "data": data["preferences"], "sft_weight": 0.3, **TRAINING,
    },
    "kto": lambda base, sft, data, world: {"policy": sft, "data": data["feedback"], **TRAINING},
    "simpo": lambda base, sft, data, world: {"policy": sft, "data": data["preferences"], **TRAINING},
    "orpo": lambda base, sft, data, world: {"policy": base, "data": data["preferences"], "lora": LORA, **TRAINING},
    "ppo": lambda base, sft, data, world: world.fields(**PPO, ptx_data=world.demonstrations),
    "ppo on top layers": lambda base, sft, data, world: world.fields(
        **PPO, ptx_data=world.demonstrations, top_layers=1
    ),
}  # fmt: skip
"""By name, of which the first word is the stage, from base, SFT adapter, data by form, and PPO's small world."""

DEEPSPEED = pytest.param(
    "deepspeed",
    marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="wants deepspeed: make proofs installs it"),
)
"""The mode, as a parameter of a test."""


def execution(processes: int = 1, mode: Mode = "ddp", **more: Any) -> Execution:
    """One thread a process, so that one and two are compared in the same arithmetic; saved amid training."""
    launch = Launch(processes=processes, mode=mode)
    return Execution(**{"threads": processes, "device": "cpu", "launch": launch, "save_interval": 4, **more})
