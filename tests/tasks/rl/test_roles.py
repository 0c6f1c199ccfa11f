"""Four adapters take turns on one base: each is what it says, two of them train, and nothing else moves by a bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from artifacts.errors import StageError
from tasks.lora import LoRA
from tasks.rl import update
from tasks.rl.loop import Loop
from tasks.rl.roles import Role, Roles
from tasks.training.logps import hidden_states, padded
from tasks.training.models import load_model
from tasks.training.rows import load_rows
from tasks.training.sampling import merged
from tasks.training.scoring import load_reward, score
from tests.tasks.rl.runs import (
    World,
    adapter_in,
    adapter_of,
    base_in,
    loop_of,
    reward_in,
    run,
    same,
    top,
)

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])
LAYERS = 3


def some_batch(world: World) -> dict[str, Tensor]:
    rows = load_rows(world.demonstrations, "train")
    return padded([row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows], 0, "cpu")


def everything(loop: Loop) -> dict[str, Tensor]:
    """Copies of all tensors in memory, by model and name, with the heads."""
    models = {id(role.model): role.model for role in loop.roles.all()}
    found = {
        f"{number} {name}": tensor.clone()
        for number, model in enumerate(models.values())
        for name, tensor in model.state_dict().items()
    }
    heads = {"score_weight", "score_offset"} & vars(loop.roles).keys()
    return found | {name: getattr(loop.roles, name).clone() for name in heads}


def trained_places(loop: Loop) -> set[int]:
    roles = (loop.roles.policy, loop.roles.value)
    return {parameter.data_ptr() for role in roles for parameter in role.parameters.values()}


def frozen(loop: Loop) -> dict[str, Tensor]:
    """Copies of all that must not change."""
    models, places = {id(role.model): role.model for role in loop.roles.all()}, trained_places(loop)
    names = {
        f"{number} {name}"
        for number, model in enumerate(models.values())
        for name, tensor in model.state_dict().items()
        if tensor.data_ptr() in places
    }
    return {name: tensor for name, tensor in everything(loop).items() if name not in names}


# What each role is


def test_policy_and_reference_start_as_the_sft_adapter_value_and_reward_as_the_reward_model(world, tmp_path):
    roles = loop_of(tmp_path, **world.fields()).roles
    for role, handle in (
        (roles.policy, world.policy), (roles.reference, world.policy),
        (roles.value, world.reward), (roles.reward, world.reward),
    ):  # fmt: skip
        inside = {
            name.replace(f".{role.name}.", "."): tensor
            for name, tensor in role.model.state_dict().items()
            if f".{role.name}." in name
        }
        assert same(inside, adapter_of(handle)), role.name


@KINDS
def test_in_whatever_order_they_take_turns_each_role_answers_as_its_own_model_would(worlds, kind, tmp_path):
    world = worlds[kind]
    roles, batch = loop_of(tmp_path, **world.fields()).roles, some_batch(world)
    own, trunk_and_head = load_model(world.policy, "cpu"), load_reward(world.reward, "cpu")
    with torch.no_grad():
        wanted = {"policy": hidden_states(own, batch), "reward": hidden_states(trunk_and_head[0], batch)}
        wanted |= {"reference": wanted["policy"], "value": wanted["reward"]}
        for order in itertools.permutations(roles.all()):
            for role in order:
                assert torch.equal(roles.states(role, batch, None), wanted[role.name])
        scores = score(*trunk_and_head, batch)
        last = batch["attention_mask"].sum(dim=1) - 1
        assert torch.allclose(roles.scores(wanted["reward"][torch.arange(len(last)), last]), scores, atol=1e-6)


def test_before_training_the_value_of_a_finished_text_is_its_score(world, tmp_path):
    roles = loop_of(tmp_path, **world.fields()).roles
    states = torch.randn(5, 32)
    assert torch.allclose(roles.values(states), roles.scores(states), atol=1e-6)


def test_without_a_reward_model_the_value_starts_at_0_with_the_policys_own_adapter(world, tmp_path):
    ran = run(tmp_path, **world.fields(reward=None, programs={"checks": 1.0}))
    assert ran.only("val/mean")[0] == 0.0 != ran.only("val/mean")[1]
    assert "scores/reward_model" not in ran.points()[0]


def test_only_policy_and_value_take_gradients_whoever_is_active(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields())
    for role in [*loop.roles.all(), *reversed(loop.roles.all())]:
        loop.roles.activate(role)
        model = role.model
        wanting = {parameter.data_ptr() for parameter in model.parameters() if parameter.requires_grad}
        heads = {loop.roles.value_weight.data_ptr(), loop.roles.value_bias.data_ptr()}
        assert wanting == trained_places(loop) - heads


def test_an_adapters_own_dropout_is_off(world, tmp_path):
    lora = LoRA(rank=2, alpha=4, dropout=0.5, target_modules=["q_proj", "down_proj"])
    policy = adapter_in(tmp_path / "noisy", world.base, 5, lora)
    ran = run(tmp_path / "run", **world.fields(policy=policy))
    assert ran.only("val/first_ratio_deviation") == [0.0, 0.0] and ran.only("objective/kl")[0] == 0.0


# What moves


@KINDS
def test_after_a_run_policy_and_value_have_changed_everywhere_and_nothing_else_by_a_bit(worlds, kind, tmp_path):
    world = worlds[kind]
    files = {handle.key: adapter_of(handle) for handle in (world.policy, world.reward)}
    loop = loop_of(tmp_path, **world.fields(eval_rows=3))
    before, start = frozen(loop), {role.name: role.tensors() for role in (loop.roles.policy, loop.roles.value)}
    assert len(before) > len(load_model(world.base, "cpu").state_dict())
    loop.run()
    after = everything(loop)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for role in (loop.roles.policy, loop.roles.value):
        assert all(not torch.equal(start[role.name][name], now) for name, now in role.tensors().items())
    assert all(same(files[handle.key], adapter_of(handle)) for handle in (world.policy, world.reward))


def test_a_hundred_samplings_with_merged_weights_leave_every_bit_where_it_was(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields())
    before, model = everything(loop), loop.roles.policy.model
    ids = torch.tensor([[3, 4, 5]])
    loop.roles.activate(loop.roles.policy)
    plain = model(ids).logits
    for _ in range(100):
        with merged(model):
            assert torch.allclose(model(ids).logits, plain, atol=1e-5)
    assert same(before, everything(loop)) and torch.equal(model(ids).logits, plain)


def test_a_failure_while_sampling_leaves_every_bit_where_it_was(world, tmp_path, monkeypatch):
    loop = loop_of(tmp_path, **world.fields())
    before = everything(loop)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(loop.sampler, "_logits", fails)
    with pytest.raises(MemoryError):
        loop.run()
    assert same(before, everything(loop))


# Gradients


def test_every_trained_tensor_gets_a_gradient_and_no_other(world, tmp_path, monkeypatch):
    loop, seen = loop_of(tmp_path, **world.fields(total_episodes=4, num_ppo_epochs=1)), {}

    def step(self: Any, name: str, role: Role, learns: bool) -> float:
        seen[name] = {name for name, parameter in role.parameters.items() if parameter.grad is not None}
        others = [p for p in role.model.parameters() if p.grad is not None and p.data_ptr() not in trained_places(loop)]
        assert not others
        return real(self, name, role, learns)

    real = update.Update._step
    monkeypatch.setattr(update.Update, "_step", step)
    loop.run()
    assert seen == {"policy": set(loop.roles.policy.parameters), "value": set(loop.roles.value.parameters)}
    assert {"value_head.weight", "value_head.bias"} < seen["value"]


def test_a_switch_of_adapters_before_the_backward_pass_is_noticed_and_does_not_train_nothing(
    world, tmp_path, monkeypatch
):
    """peft freezes what it switches away from: policy forward, switch, one backward, and the policy has no gradient."""
    loop = loop_of(tmp_path, **world.fields())
    real = update.policy_loss

    def switches(*args: Any, **kwargs: Any) -> Tensor:
        loss = real(*args, **kwargs)
        for layer in loop.roles.policy.model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter("value")
        return loss + 0 * sum(p.sum() for p in loop.roles.value.parameters.values())

    monkeypatch.setattr(update, "policy_loss", switches)
    with pytest.raises(StageError, match=f"{len(loop.roles.policy.parameters)} tensors of the policy got no gradient"):
        loop.run()


def test_a_value_model_that_is_cut_off_is_noticed_too(world, tmp_path, monkeypatch):
    loop = loop_of(tmp_path, **world.fields())
    real = Roles.values
    monkeypatch.setattr(Roles, "values", lambda self, states: real(self, states.detach()))
    with pytest.raises(StageError, match="tensors of the value got no gradient"):
        loop.run()


# In half precision


@pytest.mark.parametrize("whole_reward", [False, True])
@pytest.mark.parametrize("top_layers", [None, 1])
def test_a_base_in_half_precision_keeps_ratio_1_kl_0_and_its_bits(tmp_path, whole_reward, top_layers):
    base = base_in(tmp_path / "base", layers=LAYERS, dtype="bfloat16")
    world = World.build(tmp_path / "world", layers=LAYERS)
    policy = adapter_in(tmp_path / "policy", base, 1, top(LAYERS))
    reward = reward_in(tmp_path / "reward", base, None if whole_reward else top(LAYERS))
    loop = loop_of(tmp_path / "run", **world.fields(policy=policy, reward=reward, top_layers=top_layers))
    before = frozen(loop)
    loop.run()
    assert all(torch.equal(everything(loop)[name], tensor) for name, tensor in before.items())
    points = loop.kept["points"]
    assert [point["val/first_ratio_deviation"] for point in points] == [0.0, 0.0] and points[0]["objective/kl"] == 0.0
    assert all(parameter.dtype == torch.float32 for parameter in loop.roles.policy.parameters.values())
