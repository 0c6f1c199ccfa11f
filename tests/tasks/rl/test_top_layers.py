"""What `top_layers` leaves out is run once and never trained; and what else can train: all weights, a fresh adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from artifacts.errors import UserError
from tasks.context import Context
from tasks.lora import LoRA
from tasks.rl.roles import Role, Roles
from tests.tasks.rl.runs import (
    World,
    adapter_in,
    adapter_of,
    furthest,
    loop_of,
    reward_in,
    run,
    same,
    top,
)

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])
LAYERS = 3


# The frozen prefix


def run_whole(monkeypatch: pytest.MonkeyPatch, folder: Path, **fields: Any) -> Any:
    """The same run with every layer run every time."""

    def whole(self: Roles, trained: Role, frozen: Role | None, ctx: Context) -> None:
        for role in (trained, frozen):
            if role is not None:
                role.depth, role.group = 0, ""

    with monkeypatch.context() as patch:
        patch.setattr(Roles, "_pair", whole)
        return run(folder, **fields)


def in_layers(world: World, folder: Path, policy: int, value: int, kind: str = "llama") -> dict[str, Any]:
    """Adapters in the top layers alone: so many of the policy, so many of the value model."""
    return {
        "policy": adapter_in(folder / "policy", world.base, 11, top(policy, kind)),
        "reward": reward_in(folder / "reward", world.base, top(value, kind), seed=12),
    }


@KINDS
@pytest.mark.parametrize(
    ("adapters", "top_layers", "depths"),
    [
        (None, 1, (2, 2)),
        (None, 2, (1, 1)),
        ((1, 1), None, (2, 2)),
        ((1, 2), None, (2, 1)),
        ((2, 3), 2, (1, 1)),
        ((3, 1), None, (0, 2)),
    ],
)
def test_keeping_the_lower_layers_states_changes_no_bit(
    worlds, kind, adapters, top_layers, depths, tmp_path, monkeypatch
):
    """One epoch in one shape; with several shapes, see below."""
    world = worlds[kind]
    given = in_layers(world, tmp_path, *adapters, kind) if adapters else {}
    fields = world.fields(top_layers=top_layers, num_ppo_epochs=1, **given)
    loop = loop_of(tmp_path / "loop", **fields)
    assert (loop.roles.policy.depth, loop.roles.value.depth) == depths
    assert (loop.roles.reference.depth, loop.roles.reward.depth) == depths
    kept = run(tmp_path / "kept", **fields)
    whole = run_whole(monkeypatch, tmp_path / "whole", **fields)
    assert kept.points() == whole.points()
    assert same(kept.adapter(), whole.adapter()) and same(kept.value(), whole.value())


@KINDS
def test_nor_does_it_over_several_epochs_of_several_minibatches(worlds, kind, tmp_path, monkeypatch):
    fields = worlds[kind].fields(top_layers=1, num_ppo_epochs=3, num_mini_batches=2)
    kept = run(tmp_path / "kept", **fields)
    whole = run_whole(monkeypatch, tmp_path / "whole", **fields)
    assert furthest(kept.adapter(), whole.adapter()) < 1e-6 and furthest(kept.value(), whole.value()) < 1e-6
    assert kept.only("val/first_ratio_deviation") == [0.0, 0.0]


def test_states_are_shared_by_policy_and_value_only_where_they_are_the_same(world, tmp_path):
    alike = loop_of(tmp_path / "alike", **world.fields(**in_layers(world, tmp_path, 1, 1))).roles
    assert alike.policy.group == alike.value.group != ""
    apart = loop_of(tmp_path / "apart", **world.fields(top_layers=1)).roles
    assert apart.policy.group != apart.value.group, "below the top layer stand two adapters that differ"


@KINDS
def test_top_layers_changes_the_tensors_of_the_top_layers_alone(worlds, kind, tmp_path):
    world = worlds[kind]
    ran = run(tmp_path, **world.fields(top_layers=1))
    start, end = adapter_of(world.policy), ran.adapter()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {name for name in start if f".{LAYERS - 1}." in name} and changed
    value = [name.partition("layers.")[2] or name.partition("h.")[2] for name in ran.value() if "head" not in name]
    assert len(value) == len(changed) and all(name.startswith(f"{LAYERS - 1}.") for name in value)


def test_more_top_layers_than_there_are_means_all(world, tmp_path):
    assert same(
        run(tmp_path / "a", **world.fields(top_layers=9)).adapter(), run(tmp_path / "b", **world.fields()).adapter()
    )


def test_top_layers_without_any_adapter_in_them_is_refused_in_words(world, tmp_path):
    lora = LoRA(rank=2, target_modules=["model.layers.0.self_attn.q_proj"])
    policy = adapter_in(tmp_path / "low", world.base, 5, lora)
    with pytest.raises(UserError, match="top_layers"):
        run(tmp_path / "run", **world.fields(policy=policy, top_layers=1))


# Other ways to train


def weights_of(handle: Any) -> dict[str, Tensor]:
    return load_file(handle.path / "model.safetensors")


@pytest.mark.parametrize("rewards", [{}, {"reward": None, "programs": {"checks": 1.0}}], ids=["model", "program"])
@pytest.mark.parametrize("top_layers", [None, 1])
def test_all_weights_of_a_checkpoint_can_train(world, tmp_path, rewards, top_layers):
    ran = run(tmp_path, **world.fields(policy=world.base, top_layers=top_layers, learning_rate=1e-4, **rewards))
    start, end = weights_of(world.base), weights_of(ran.handle)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == (set(start) if top_layers is None else {name for name in start if ".layers.2." in name})
    assert ran.only("objective/kl")[0] == 0.0 < abs(ran.only("objective/kl")[1])
    assert ran.only("val/first_ratio_deviation") == [0.0, 0.0]
    assert (ran.handle.kind, ran.handle.path.joinpath("tokenizer.json").exists()) == ("checkpoint", True)


def test_a_checkpoint_can_train_a_fresh_adapter(world, tmp_path):
    lora = {"rank": 2, "target_modules": ["q_proj", "v_proj"]}
    ran = run(tmp_path, **world.fields(policy=world.base, lora=lora))
    assert ran.handle.kind == "adapter" and ran.handle.base == world.base
    assert ran.only("objective/kl")[0] == 0.0 and ran.only("val/first_ratio_deviation") == [0.0, 0.0]
    moved = [name for name, tensor in ran.adapter().items() if "lora_B" in name and tensor.any()]
    assert len(moved) == 2 * LAYERS


@pytest.mark.parametrize("top_layers", [None, 1])
def test_a_reward_model_with_complete_weights_scores_and_starts_the_value_model(world, tmp_path, top_layers):
    reward = reward_in(tmp_path / "reward", world.base, lora=None)
    ran = run(tmp_path / "run", **world.fields(reward=reward, top_layers=top_layers, value_learning_rate=1e-4))
    start, value = weights_of(reward), ran.value()
    wanted = {name for name in start if not name.startswith("lm_head") and (top_layers is None or ".layers.2." in name)}
    assert {f"model.{name}" for name in value if "head" not in name} == wanted
    assert all(not torch.equal(value[name.removeprefix("model.")], start[name]) for name in wanted)
