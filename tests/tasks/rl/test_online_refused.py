"""What trained modules whole can't share a base with other roles: said by the plan, from its configuration alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ONLINE = pytest.mark.parametrize("uses", ["ppo", "rloo", "grpo"])
SHORT = {"max_steps": 1, "eval_rows": 0}
WHOLE = {"rank": 2, "modules_to_save": ["embed_tokens", "norm"]}


@pytest.fixture(scope="module")
def whole(kitchen, base, demonstrations, pairs) -> dict[str, Any]:
    """A policy and a reward model that trained modules whole."""
    common = {"base": base.handle, "lora": WHOLE, **SHORT}
    return {
        "policy": kitchen.make("sft", data=demonstrations.handle, **common).handle,
        "reward": kitchen.make("reward", data=pairs.handle, **common).handle,
    }


@pytest.fixture
def planned(whole, tmp_path) -> Callable[[str], Any]:
    """One of them without its weights, so that nothing could be loaded."""

    def without_weights(role: str) -> Any:
        (tmp_path / role).mkdir()
        shutil.copy(whole[role].path / "adapter_config.json", tmp_path / role)
        return whole[role].model_copy(update={"path": tmp_path / role})

    return without_weights


@ONLINE
def test_a_reward_model_that_trained_modules_whole_is_refused_by_the_plan(kitchen, sft, pairs, planned, uses):
    reward = planned("reward")
    said = kitchen.stage(uses, policy=sft.handle, data=pairs.handle, reward=reward).input_problem()
    assert said == (
        f"reward: reward_model {reward.key[:12]} was trained with model.embed_tokens, model.norm whole "
        "(modules_to_save), which can't go on here; train it without"
    )


@ONLINE
def test_a_policy_that_trained_modules_whole_is_refused_by_the_plan(kitchen, pairs, reward, planned, uses):
    policy = planned("policy")
    said = kitchen.stage(uses, policy=policy, data=pairs.handle, reward=reward.handle).input_problem()
    assert said == (
        f"policy: adapter {policy.key[:12]} was trained with lm_head, model.norm whole (modules_to_save), "
        "which can't go on here; merge it and start from the merged checkpoint, or train it without"
    )


@ONLINE
def test_what_trained_matrices_alone_or_is_not_made_yet_is_not(kitchen, base, sft, reward, pairs, uses):
    given = {"data": pairs.handle, "reward": reward.handle}
    later = sft.handle.model_copy(update={"path": Path("/nowhere")})
    for policy in (sft.handle, base.handle, later):
        assert kitchen.stage(uses, policy=policy, **given).input_problem() is None


@ONLINE
def test_the_other_problems_of_inputs_are_still_said(kitchen, base, pairs, reward, uses):
    stage = kitchen.stage(uses, policy=base.handle, data=pairs.handle, reward=reward.handle, lora={"rank": 65})
    assert "lora.rank: wanted at most 32" in str(stage.input_problem())
