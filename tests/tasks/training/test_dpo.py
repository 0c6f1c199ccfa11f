from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from tasks.training.logps import padded, token_logps
from tasks.training.models import load_model
from tasks.training.rows import load_rows


def test_the_loss_is_ln_2_at_the_first_step(dpo):
    first = next(point["metrics"] for point in dpo.points() if "train/loss" in point["metrics"])
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0


def test_after_training_chosen_is_preferred_more_than_by_the_reference(dpo):
    assert dpo.metrics["train/loss"] < math.log(2)
    assert dpo.metrics["rewards/margins"] > 0


def test_the_reported_rewards_are_beta_times_the_log_ratios_and_the_loss_follows(dpo, sft, pairs):
    """An oracle of our own: both models loaded afresh, equation 7 written out."""
    rows = load_rows(pairs.handle, "test")[:8]
    with torch.no_grad():
        chosen, rejected = (
            0.3 * (logps(dpo.handle, rows, side) - logps(sft.handle, rows, side)) for side in ("chosen", "rejected")
        )
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert dpo.metrics["validation/rewards/chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert dpo.metrics["validation/rewards/rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)
    assert dpo.metrics["validation/loss"] == pytest.approx(float(loss), abs=1e-4)


def logps(handle, rows, side):
    batch = padded([row["prompt_ids"] for row in rows], [row[f"{side}_ids"] for row in rows], 0, "cpu")
    return token_logps(load_model(handle, "cpu"), batch).sum(dim=1)


def test_sft_weight_adds_the_chosen_completions_loss_a_token(kitchen, sft, pairs):
    plain = kitchen.make("dpo", policy=sft.handle, data=pairs.handle, max_steps=1, eval_rows=0)
    mixed = kitchen.make("dpo", policy=sft.handle, data=pairs.handle, max_steps=1, eval_rows=0, sft_weight=0.5)
    added = (mixed.metrics["train/loss"] - plain.metrics["train/loss"]) / 0.5
    assert 4.0 < added < 6.5  # an untrained model over 259 tokens: about ln 259 = 5.6


def test_the_sft_adapter_is_untouched_and_only_one_adapter_comes_out(dpo, sft, kitchen):
    assert kitchen.store.damage("sft", sft.handle.key) is None
    assert sorted(path.name for path in dpo.handle.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapter_as_policy_takes_no_lora_settings(kitchen, sft, pairs):
    with pytest.raises(ValidationError, match="goes on training as it is"):
        kitchen.stage("dpo", policy=sft.handle, data=pairs.handle, lora={"rank": 4})


def test_a_checkpoint_trains_a_fresh_adapter_or_all_weights(kitchen, base, pairs):
    fresh = kitchen.make("dpo", policy=base.handle, data=pairs.handle, max_steps=2, lora={"rank": 4}, eval_rows=0)
    whole = kitchen.make("dpo", policy=base.handle, data=pairs.handle, max_steps=2, learning_rate=1e-4, eval_rows=0)
    for made in (fresh, whole):
        first = next(point["metrics"] for point in made.points() if "train/loss" in point["metrics"])
        assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert fresh.handle.kind == "adapter" and whole.handle.kind == "checkpoint"
