"""PPO through the real stage: what holds before anything is learned, what one step is, and that every setting acts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tasks.context import Execution
from tasks.rl import update
from tasks.rl.loop import Loop
from tasks.rl.rollout import Rollout
from tasks.training import logps as logps_module
from tasks.training.models import load_model
from tasks.training.scoring import load_head, load_reward, score, trunk_model
from tests.tasks.rl.runs import (
    loop_of,
    run,
    same,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched:
    """A loop that keeps what went through it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.rollouts: list[Rollout] = []
        self.updates: list[tuple[Any, ...]] = []
        score, learn = loop.scorer, loop.update
        loop.scorer = lambda *given: self._kept(self.rollouts, score(*given))  # type: ignore[assignment]
        loop.update = lambda *given: learn(*self._kept(self.updates, given))  # type: ignore[assignment]

    def _kept(self, into: list[Any], what: Any) -> Any:
        into.append(what)
        return what


def plain_logps(model: Any, prompt: list[int], completion: list[int], temperature: float) -> Tensor:
    """log p of each token of a completion, by a row alone, plain transformers and the full softmax."""
    ids = torch.tensor([prompt + completion])
    found = (model(ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
    return found[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


# Before anything is learned


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_first_ratio_of_every_rollout_is_exactly_1_and_the_first_kl_exactly_0(worlds, kind, minibatches, tmp_path):
    ran = run(
        tmp_path, **worlds[kind].fields(total_episodes=12, num_mini_batches=minibatches, batch_size=6, temperature=0.7)
    )
    assert ran.only("val/first_ratio_deviation") == [0.0, 0.0]
    assert ran.only("objective/kl")[0] == 0.0 and ran.only("objective/kl_k3")[0] == 0.0
    assert ran.only("objective/kl")[1] != 0.0 < ran.only("objective/kl_k3")[1]
    assert max(ran.only("sampling/logp_difference")) < 1e-4


def test_nothing_is_clipped_at_the_only_step_of_a_rollout(cached):
    ran = cached(num_ppo_epochs=1)
    for name, value in {
        "policy/clipfrac_avg": 0.0, "val/clipfrac_avg": 0.0, "policy/approxkl_avg": 0.0, "val/ratio": 1.0,
        "policy/ratio_max": 1.0,
    }.items():  # fmt: skip
        assert ran.only(name) == [value, value]


def test_it_holds_on_the_real_chain_with_its_chat_template_too(kitchen, sft, pairs, reward):
    made = kitchen.make(
        "ppo", policy=sft.handle, data=pairs.handle, reward=reward.handle, batch_size=8, total_episodes=16,
        max_new_tokens=8, learning_rate=2e-3, eval_rows=4, num_ppo_epochs=2,
    )  # fmt: skip
    points = [point["metrics"] for point in made.points()]
    assert [point["val/first_ratio_deviation"] for point in points] == [0.0, 0.0]
    assert points[0]["objective/kl"] == 0.0 and points[0]["sampling/logp_difference"] < 1e-4
    assert made.metrics["validation/kl_before"] == 0.0 != made.metrics["validation/kl"]
    assert [point["step"] for point in made.points()] == [8, 16]
    assert [point["optimizer_step"] for point in made.points()] == [2, 4]


def test_with_no_learning_rate_nothing_moves_in_three_rollouts(world, tmp_path):
    ran = run(tmp_path, **world.fields(learning_rate=1e-30, total_episodes=12, eval_rows=3))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (ran.handle.path / name).read_bytes() == (world.policy.path / name).read_bytes()
    for name, value in {"val/ratio": 1.0, "policy/ratio_max": 1.0, "objective/kl": 0.0}.items():
        assert ran.only(name) == [value] * 3
    assert ran.metrics["validation/score"] == ran.metrics["validation/score_before"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(world, cached, tmp_path):
    again = run(tmp_path, **world.fields())
    assert same(again.adapter(), cached().adapter()) and again.points() == cached().points()
    assert again.figures() == cached().figures()


# What is computed


def test_log_probabilities_values_and_scores_are_those_of_plain_models_row_by_row(world, tmp_path):
    """In the second rollout, where policy and reference differ, at another temperature than 1."""
    loop = loop_of(tmp_path, **world.fields(temperature=0.7))
    watched, policies = Watched(loop), []
    learn = loop.update
    loop.update = lambda *given: (policies.append(loop.roles.policy.tensors()), learn(*given))[1]  # type: ignore
    loop.run()
    rollout = watched.rollouts[1]
    policy, reference = load_model(world.policy, "cpu"), load_model(world.policy, "cpu")
    with torch.no_grad():
        for name, tensor in policies[1].items():
            policy.get_parameter(name.replace(".policy.", ".default.")).copy_(tensor)
        for i, (row, sampled) in enumerate(zip(rollout.rows, rollout.sampled, strict=True)):
            for model, found in ((policy, rollout.logps), (reference, rollout.ref_logps)):
                wanted = plain_logps(model, row["prompt_ids"], sampled.ids, 0.7)
                assert torch.allclose(found[i][rollout.mask[i]], wanted, atol=1e-5)
        trunk, head = load_reward(world.reward, "cpu")
        for i, (row, sampled) in enumerate(zip(rollout.rows, rollout.sampled, strict=True)):
            ids = torch.tensor([row["prompt_ids"] + sampled.ids])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            assert float(rollout.scores[i]) == pytest.approx(float(score(trunk, head, batch)), abs=1e-5)
            first = watched.rollouts[0]
            ids = torch.tensor([first.rows[i]["prompt_ids"] + first.sampled[i].ids])
            states = logps_module.hidden_states(trunk, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]
            before_each = head(states[len(first.rows[i]["prompt_ids"]) - 1 : -1])
            assert torch.allclose(first.values[i][first.mask[i]], before_each, atol=1e-5)


def test_the_metrics_are_what_their_names_say(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields(programs={"checks": 2.0}, missing_eos_penalty=0.5, total_episodes=8))
    watched = Watched(loop)
    loop.run()
    rollout, point = watched.rollouts[1], loop.kept["points"][1]
    count, mask = len(rollout.rows), rollout.mask
    log_ratio = torch.where(mask, rollout.logps - rollout.ref_logps, 0.0)
    kl, total = float(log_ratio.sum() / count), float(rollout.scores.mean())
    checks, model = point["scores/checks"], point["scores/reward_model"]
    cut = sum(one.truncated for one in rollout.sampled) / count
    wanted = {
        "objective/kl": kl,
        "objective/kl_k3": float(torch.where(mask, (-log_ratio).exp() - 1 + log_ratio, 0.0).sum() / count),
        "objective/entropy": float(-rollout.logps[mask].sum() / count),
        "policy/entropy": float(-rollout.logps[mask].mean()),
        "objective/scores": 2 * checks + model - 0.5 * cut,
        "objective/non_score_reward": -0.05 * kl,
        "objective/rlhf_reward": total - 0.05 * kl,
        "completions/mean_length": sum(len(one.ids) for one in rollout.sampled) / count,
        "completions/max_length": max(len(one.ids) for one in rollout.sampled),
        "completions/clipped_ratio": cut,
        "val/mean": float(rollout.values[mask].mean()),
        "scores/checks": sum("c" in text for text in rollout.texts) / count,
    }
    assert {name: point[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert 0 < cut < 1 and sum(mask.sum(dim=1).tolist()) == sum(len(one.ids) for one in rollout.sampled)


Gradients = dict[str, Tensor]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Gradients]]:
    """The gradients at each step of each role, as they are before they are clipped."""
    found: dict[str, list[Gradients]] = {"policy": [], "value": []}
    real = update.Update._step

    def step(self: Any, name: str, role: Any, learns: bool) -> float:
        found[name].append({place: parameter.grad.clone() for place, parameter in role.parameters.items()})
        return real(self, name, role, learns)

    monkeypatch.setattr(update.Update, "_step", step)
    return found


def adapter_gradients(model: Any, role: str) -> Gradients:
    """Of a model with one adapter, under the names that they have for a role."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name.replace(".default.", f".{role}."): gradient for name, gradient in found.items()}


def test_each_steps_gradient_is_that_of_reinforce_on_its_own_minibatch(world, tmp_path, steps):
    """grad of -sum_t A_t log pi(y_t | s_t) / tokens, by plain transformers, one row after another.

    The policy stays where it is, so that every ratio is 1; what an earlier step left in a gradient would show.
    """
    loop = loop_of(
        tmp_path, **world.fields(batch_size=6, num_mini_batches=2, learning_rate=1e-30, temperature=0.7),
        execution=Execution(threads=1, device="cpu", micro_batch=2),
    )  # fmt: skip
    watched = Watched(loop)
    loop.run()
    assert len(steps["policy"]) == 2 * 2 * 2
    for number, (rollout, advantages, _, _, epochs, *_) in enumerate(watched.updates):
        for place, parts in enumerate(itertools.chain(*epochs)):
            rows = list(itertools.chain(*parts))
            model = load_model(world.policy, "cpu", trainable=True).eval()
            tokens = sum(len(rollout.sampled[i].ids) for i in rows)
            for i in rows:
                logps = plain_logps(model, rollout.rows[i]["prompt_ids"], rollout.sampled[i].ids, 0.7)
                (-(logps * advantages[i, : len(logps)]).sum() / tokens).backward()
            wanted = adapter_gradients(model, "policy")
            found = steps["policy"][4 * number + place]
            assert found.keys() == wanted.keys()
            assert all(torch.allclose(found[name], wanted[name], atol=1e-6) and wanted[name].any() for name in wanted)


def test_each_steps_gradient_of_the_value_model_is_that_of_half_its_squared_error(world, tmp_path, steps):
    loop = loop_of(
        tmp_path, **world.fields(num_mini_batches=2, num_ppo_epochs=1, learning_rate=1e-30, total_episodes=4)
    )
    watched = Watched(loop)
    loop.run()
    rollout, _, returns, _, epochs, *_ = watched.updates[0]
    weight, offset = load_head(world.reward, "cpu")
    for found, parts in zip(steps["value"], epochs[0], strict=True):
        rows = list(itertools.chain(*parts))
        trunk = load_model(trunk_model(world.reward), "cpu", trainable=True).eval()
        head = [weight.clone().requires_grad_(), (-offset).clone().requires_grad_()]
        tokens = sum(len(rollout.sampled[i].ids) for i in rows)
        for i in rows:
            prompt, completion = rollout.rows[i]["prompt_ids"], rollout.sampled[i].ids
            ids = torch.tensor([prompt + completion])
            states = logps_module.hidden_states(trunk, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]
            values = states[len(prompt) - 1 : -1] @ head[0][0] + head[1]
            (0.1 * 0.5 * ((values - returns[i, : len(values)]) ** 2).sum() / tokens).backward()
        own = {name.removeprefix("base_model.model."): x for name, x in adapter_gradients(trunk, "value").items()}
        wanted = {name.removeprefix("model."): x for name, x in own.items()}
        wanted |= {"value_head.weight": head[0].grad, "value_head.bias": head[1].grad}
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) and wanted[name].any() for name in wanted)


def test_advantages_are_whitened_and_returns_are_not(world, tmp_path):
    """A_t = sum_l lam^l delta_{t+l} by brute force, with the KL penalty in the rewards, in the second rollout."""
    loop = loop_of(tmp_path, **world.fields(kl_coef=0.3, lam=0.8))
    watched = Watched(loop)
    loop.run()
    rollout, advantages, returns, *_ = watched.updates[1]
    raw = []
    for i, sampled in enumerate(rollout.sampled):
        count = len(sampled.ids)
        rewards = (-0.3 * (rollout.logps[i, :count] - rollout.ref_logps[i, :count])).tolist()
        rewards[-1] += float(rollout.scores[i])
        values = [*rollout.values[i, :count].tolist(), 0.0]
        deltas = [rewards[t] + values[t + 1] - values[t] for t in range(count)]
        own = [sum(0.8 ** (s - t) * deltas[s] for s in range(t, count)) for t in range(count)]
        wanted = [advantage + value for advantage, value in zip(own, values, strict=False)]
        assert returns[i, :count].tolist() == pytest.approx(wanted, abs=1e-5)
        raw += own
    flat = torch.tensor(raw)
    whitened = (flat - flat.mean()) / flat.std(unbiased=False)
    assert torch.allclose(advantages[rollout.mask], whitened, atol=1e-4)


def test_the_sft_term_adds_its_own_gradient(world, tmp_path, steps):
    common = {"num_ppo_epochs": 1, "total_episodes": 4}
    run(tmp_path / "without", **world.fields(**common))
    mixed = loop_of(tmp_path / "with", **world.fields(ptx_coef=3.0, ptx_data=world.demonstrations, **common))
    rows = mixed._ptx_batch(0)
    mixed.run()
    model = load_model(world.policy, "cpu", trainable=True).eval()
    tokens = sum(len(row["completion_ids"]) for row in rows)
    loss: Any = 0.0
    for row in rows:
        logits = model(torch.tensor([row["prompt_ids"] + row["completion_ids"]])).logits[0]
        wanted = torch.tensor(row["completion_ids"])
        loss = loss + cross_entropy(logits[len(row["prompt_ids"]) - 1 : -1], wanted, reduction="sum") / tokens
    loss.backward()
    point = mixed.kept["points"][0]
    assert point["loss/ptx_avg"] == pytest.approx(loss.item(), abs=1e-5)
    parts = point["loss/policy_avg"] + mixed.stage.vf_coef * point["loss/value_avg"] + 3 * point["loss/ptx_avg"]
    assert point["train/loss"] == pytest.approx(parts)
    without, with_it = steps["policy"]
    for name, gradient in adapter_gradients(model, "policy").items():
        assert torch.allclose(with_it[name] - without[name], 3 * gradient, atol=1e-5)
