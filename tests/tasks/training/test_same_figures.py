"""Methods of a kind report the same figures, so that pages line them up, and any one puts no other's inputs first."""

from __future__ import annotations

import json

import pytest

from tasks.registry import stage_class

SIDES = {f"{what}/{side}" for what in ("rewards", "logps") for side in ("chosen", "rejected")}
PREFERENCES = SIDES | {"rewards/margins", "rewards/accuracies", "train/loss", "train/grad_norm", "train/learning_rate"}
FROM_A_REWARD = {
    "objective/kl", "objective/kl_coef", "objective/entropy", "objective/scores", "objective/scores_std",
    "objective/rlhf_reward", "objective/non_score_reward", "policy/clipfrac_avg", "completions/mean_length",
    "completions/clipped_ratio", "train/grad_norm", "train/learning_rate", "train/tokens_per_second",
}  # fmt: skip
SMALL = {"learning_rate": 1e-3, "eval_rows": 4}


def points(made) -> set[str]:
    """The names of what it logged along the way."""
    lines = (made.folder / "metrics.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)["metrics"]}


@pytest.mark.parametrize("uses", ["dpo", "simpo", "orpo", "kto"])
def test_from_preferences(kitchen, sft, pairs, feedback, uses):
    data = (feedback if uses == "kto" else pairs).handle
    made = kitchen.make(uses, policy=sft.handle, data=data, max_steps=2, **SMALL)
    held_out = {f"validation/{name}" for name in SIDES | {"loss", "rewards/margins", "rewards/accuracies"}}
    assert points(made) >= PREFERENCES | {"train/tokens_per_second"} | held_out
    assert made.metrics.keys() >= PREFERENCES | {"cost/tokens"} | held_out


@pytest.mark.parametrize("uses", ["ppo", "rloo", "grpo"])
def test_from_a_reward(kitchen, sft, pairs, reward, uses):
    made = kitchen.make(
        uses, policy=sft.handle, data=pairs.handle, reward=reward.handle, batch_size=8, total_episodes=16,
        max_new_tokens=6, **SMALL,
    )  # fmt: skip
    assert points(made) >= FROM_A_REWARD
    assert made.metrics.keys() >= {"cost/tokens", "validation/score", "validation/score_before", "validation/length"}


def test_they_take_the_same_inputs():
    """`policy` and `data` everywhere; what scores is a `reward` for all that need one."""
    taken = {uses: set(stage_class(uses).inputs()) for uses in ("dpo", "simpo", "orpo", "kto", "ppo", "rloo", "grpo")}
    assert all(taken[uses] == {"policy", "data"} for uses in ("simpo", "orpo", "kto"))
    assert all({"policy", "data"} <= inputs for inputs in taken.values())
    assert all(taken[uses] >= {"policy", "data", "reward"} for uses in ("ppo", "rloo", "grpo"))
