"""Every method on every kind of adapter and on all weights: what should train does, and what comes out merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file

from tasks.training.models import ADAPTER_FILE
from tests.tasks.conftest import Made

KINDS: dict[str, Any] = {
    "LoRA": {"rank": 4},
    "rsLoRA": {"rank": 4, "rslora": True},
    "DoRA": {"rank": 4, "dora": True},
    "all weights": None,
}
METHODS = ("sft", "reward", "dpo", "simpo", "kto", "orpo", "ppo", "rloo", "grpo")
SAMPLED = {
    "batch_size": 8, "total_episodes": 16, "max_new_tokens": 6, "programs": {"checks": 1.0}, "missing_eos_penalty": 0.5,
}  # fmt: skip


@pytest.fixture
def train(kitchen: Any, base: Made, demonstrations: Made, pairs: Made, feedback: Made) -> Any:
    """Runs a method on the base itself for a few steps."""

    def train(uses: str, lora: Any, **fields: Any) -> Made:
        data = {"sft": demonstrations, "kto": feedback}.get(uses, pairs)
        start = "base" if uses in ("sft", "reward") else "policy"
        fields = {start: base.handle, "data": data.handle, "lora": lora, "learning_rate": 3e-3, "eval_rows": 0} | fields
        fields |= SAMPLED if uses in ("ppo", "rloo", "grpo") else {"max_steps": 3}
        made: Made = kitchen.make(uses, **fields)
        return made

    return train


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uses", METHODS)
def test_all_that_should_train_does_and_is_merged(kitchen, base, pairs, train, uses, kind):
    made, start = train(uses, KINDS[kind]), weights_in(base.handle.path)
    if kind == "all weights":
        tuned = weights_in(made.handle.path)
        same = [name for name, weight in start.items() if torch.equal(tuned[name], weight)]
        assert not same
        return
    tensors = load_file(made.handle.path / ADAPTER_FILE)
    for name, tensor in tensors.items():
        assert tensor.isfinite().all() and tensor.any(), name  # B starts as 0
        if "magnitude" in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
            assert not torch.equal(tensor, start[f"{module}.weight"].norm(dim=1))
    assert any("magnitude" in name for name in tensors) == (kind == "DoRA")
    if uses != "reward":
        merged = kitchen.make("merge", adapter=made.handle, data=pairs.handle, prompts=4)
        assert merged.metrics["merge/max_logit_difference"] < 1e-4


@pytest.mark.parametrize("uses", METHODS)
def test_moments_in_8_bits_are_those_of_large_tensors(train, uses, monkeypatch):
    """The library keeps tensors below 4,096 elements in 32 bits: at rank 32 some here have as many."""
    updated: list[int] = []
    real = bitsandbytes.functional.optimizer_update_8bit_blockwise

    def update(name: str, gradient: Any, parameter: Any, first: Any, second: Any, *more: Any, **options: Any) -> None:
        assert first.dtype == second.dtype == torch.uint8
        updated.append(parameter.numel())
        real(name, gradient, parameter, first, second, *more, **options)

    monkeypatch.setattr(bitsandbytes.functional, "optimizer_update_8bit_blockwise", update)
    train(uses, {"rank": 32}, optimizer="adamw_8bit")
    assert updated and min(updated) >= 4096
