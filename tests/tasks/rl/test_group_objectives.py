"""RLOO's and GRPO's advantages and losses, as TRL computes them, against their equations."""

from __future__ import annotations

import math

import pytest
import torch
import trl
from trl.trainer.utils import use_adapter

from tests.tasks.rl.group_runs import BOTH, bytes_of, logged, program

pytestmark = pytest.mark.usefixtures("one_thread")


# Advantages


def advantages(trainer):
    return torch.tensor(list(trainer._logs["advantages"])).view(-1, 4)


def test_rloo_compares_with_the_mean_of_the_others(tiny, watch):
    """Rewards 0, 1, 2, 5: the others' means are 8/3, 7/3, 2, 1."""
    tiny("rloo", programs=program("in_turn"), kl_coef=0.0)
    found = advantages(watch[0])
    assert torch.allclose(found, torch.tensor([-8 / 3, -4 / 3, 0.0, 4.0]).expand(2, 4), atol=1e-6)
    assert torch.allclose(found.sum(dim=1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(found, 4 / 3 * torch.tensor([-2.0, -1.0, 0.0, 3.0]), atol=1e-6)  # k / (k - 1) the distance


def test_rloo_can_normalize_them_over_the_rollout(tiny, watch):
    tiny("rloo", programs=program("in_turn"), kl_coef=0.0, normalize_advantages=True)
    found = advantages(watch[0])
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-6) and float(found.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("scale", "divisor"), [("none", 1.0), ("group", 14 / 3), ("batch", 28 / 7)])
def test_grpo_compares_with_the_mean_and_divides_as_told(tiny, watch, scale, divisor):
    """The mean is 2; the squares sum to 14 in a group of 4, to 28 in the rollout of 8."""
    tiny("grpo", programs=program("in_turn"), kl_coef=0.0, scale_rewards=scale)
    wanted = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / math.sqrt(divisor)
    assert torch.allclose(advantages(watch[0]), wanted.expand(2, 4), atol=1e-3)


def test_rloo_takes_the_kl_of_the_whole_completion_from_the_reward(tiny, monkeypatch):
    """Of every rollout, the advantages from the scores and from both adapters' log-probabilities."""
    seen, original = [], trl.RLOOTrainer._generate_and_score_completions

    def watched(self, inputs):
        output = original(self, inputs)
        log_ratio = (token_logps(self.model, "default", output, 0.7) - token_logps(self.model, "ref", output, 0.7)).sum(
            1
        )
        rewards = torch.tensor(list(self._logs["rewards"]["score"])[-8:]) - 2.0 * log_ratio
        others = (rewards.view(2, 4).sum(dim=1, keepdim=True) - rewards.view(2, 4)) / 3
        seen.append((output["advantages"], rewards - others.view(-1), log_ratio))
        return output

    monkeypatch.setattr(trl.RLOOTrainer, "_generate_and_score_completions", watched)
    tiny("rloo", kl_coef=2.0, temperature=0.7)
    assert len(seen) == 3 and seen[-1][2].abs().max() > 1e-3
    for found, wanted, _ in seen:
        assert torch.allclose(found, wanted, atol=1e-4)


def token_logps(model, name, inputs, temperature):
    """log p of each sampled token under an adapter, 0 elsewhere, (B, T)."""
    mask = inputs["completion_mask"].bool()
    ids, attention = (
        torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], 1) for part in ("ids", "mask")
    )
    with torch.no_grad(), use_adapter(model, name):
        logits = model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    logps = (logits / temperature).log_softmax(-1).gather(-1, inputs["completion_ids"][..., None]).squeeze(-1)
    return logps.masked_fill(~mask, 0.0)


@BOTH
def test_groups_whose_scores_are_equal_teach_nothing_and_break_nothing(tiny, sft, uses):
    made = tiny(uses, programs=program("nothing"), kl_coef=0.0)
    assert bytes_of(made) == (sft.handle.path / "adapter_model.safetensors").read_bytes()
    assert logged(made, "objective/equal_groups") == [1.0] * 3
    assert all(math.isfinite(value) for point in made.points() for value in point["metrics"].values())


# Losses


def test_rloos_loss_is_the_one_in_its_docstring(tiny, monkeypatch):
    pairs, original = [], trl.RLOOTrainer._compute_loss

    def watched(self, model, inputs):
        loss = original(self, model, inputs)
        ratio = (token_logps(model, "default", inputs, 1.0).sum(dim=1) - inputs["old_logps"]).exp()
        gain = inputs["advantages"]
        pairs.append((float(loss), float(-torch.minimum(ratio * gain, ratio.clamp(0.99, 1.01) * gain).mean())))
        return loss

    monkeypatch.setattr(trl.RLOOTrainer, "_compute_loss", watched)
    made = tiny("rloo", num_iterations=2, cliprange=0.01)
    assert len(pairs) == 6 and all(found == pytest.approx(wanted, abs=1e-4) for found, wanted in pairs)
    assert logged(made, "policy/clipfrac_avg")[1] > 0  # so the ratio has moved, and was clipped


def test_grpos_loss_is_the_one_in_its_docstring(tiny, monkeypatch):
    pairs, original = [], trl.GRPOTrainer._compute_loss

    def watched(self, model, inputs):
        loss = original(self, model, inputs)
        logps, mask = token_logps(model, "default", inputs, 1.0), inputs["completion_mask"].bool()
        ratio, gain = (logps - inputs["old_per_token_logps"]).exp(), inputs["advantages"][:, None]
        x = logps - token_logps(model, "ref", inputs, 1.0)
        token = -torch.minimum(ratio * gain, ratio.clamp(0.99, 1.01) * gain) + 0.5 * ratio * ((-x).exp() - 1 + x)
        pairs.append((float(loss), float(token[mask].sum() / mask.sum())))
        return loss

    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", watched)
    made = tiny("grpo", num_iterations=2, cliprange=0.01, kl_coef=0.5)
    assert len(pairs) == 6 and all(found == pytest.approx(wanted, abs=1e-4) for found, wanted in pairs)
    assert logged(made, "policy/clipfrac_avg")[1] > 0 and logged(made, "objective/kl")[-1] > 0


def test_the_gradient_of_grpos_kl_term_is_that_of_each_tokens_kl():
    """At ratio 1, of one token over three: what the docstring of tasks/grpo.py says of the two forms."""
    logits, reference = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3).double().log_softmax(0)
    policy = logits.log_softmax(0)
    kl = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    x, ratio = policy - reference, (policy - policy.detach()).exp()
    k3 = (-x).exp() - 1 + x
    weights = policy.detach().exp()  # the expectation over what is sampled
    with_ratio, without = (
        torch.autograd.grad((weights * loss).sum(), logits, retain_graph=True)[0] for loss in (ratio * k3, k3)
    )
    backwards = torch.autograd.grad((reference.exp() * (reference - policy)).sum(), logits)[0]
    assert torch.allclose(with_ratio, kl) and torch.allclose(without, backwards)
    assert not torch.allclose(kl, backwards, atol=1e-2)
