"""PPO's functions against the PPOTrainer of TRL 1.12.0, on rollouts that TRL sampled and trained on.

trl_rollout.py records them, in TRL's own environment, for two runs: `plain` with TRL's defaults, `whitened` with its
whitening of rewards and its other KL penalty. First what agrees: everything, once TRL's conventions are put in where
ours differ. Then each of these differences, and what it amounts to; they are on purpose.
"""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.rl.objective import (
    LOG_RATIO_LIMIT,
    advantages_and_returns,
    k3,
    masked_mean,
    policy_loss,
    ratio,
    sequence_kl,
    token_rewards,
    value_loss,
    whiten,
)

TRL = Path(__file__).resolve().parents[2] / ".venv-trl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TRL / ".ready").exists(), reason="needs TRL 1.12.0: `make .venv-trl/.ready` installs it"),
]


@dataclass
class Rollout:
    """One of TRL's rollouts, by the names of its local variables, and the micro-batches it was trained on in order."""

    settings: dict[str, float]
    name: str
    tensors: dict[str, Tensor]
    micro_batches: list[dict[str, Tensor]]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> Tensor:
        """The sampled tokens."""
        return ~self["padding_mask"]

    @property
    def longer_mask(self) -> Tensor:
        """The sampled tokens and, where there is one, the PAD after them: TRL keeps a reward and a value for it."""
        return ~self["padding_mask_p1"]

    @property
    def ended_early(self) -> Tensor:
        """Which completions have such a PAD: not those cut off, nor those whose EOS is in the last column."""
        return self.longer_mask.sum(dim=1) > self.mask.sum(dim=1)

    def penalty_and_score(self, mask: Tensor) -> Tensor:
        """Our rewards with TRL's KL penalty: k1, or k3, which `token_rewards` does not have."""
        coef, pair = self.settings["kl_coef"], (self["logprobs"], self["ref_logprobs"])
        if self.name == "plain":
            return token_rewards(self["scores"], *pair, mask, kl_coef=coef)
        return token_rewards(self["scores"], *pair, mask, kl_coef=0.0) - coef * k3(*pair, self.mask)

    def rewards(self) -> Tensor:
        """Our rewards in TRL's convention: a mask one longer moves the score. There, TRL sets both log-probs to 1."""
        rewards = self.penalty_and_score(self.longer_mask)
        return rewards if self.name == "plain" else whiten_as_trl(rewards, self.longer_mask, shift_mean=False)

    def advantages_and_returns(self) -> tuple[Tensor, Tensor]:
        """Ours in TRL's convention, not yet whitened."""
        return self.estimate(self.rewards(), self.longer_mask)

    def estimate(self, rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        gamma, lam = self.settings["gamma"], self.settings["lam"]
        return advantages_and_returns(rewards, self["values"], mask, gamma=gamma, lam=lam)

    def epochs(self) -> list[list[dict[str, Tensor]]]:
        half = len(self.micro_batches) // 2
        return [self.micro_batches[:half], self.micro_batches[half:]]


def whiten_as_trl(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Our `whiten`, brought from the biased standard deviation to the one with Bessel's correction."""
    tokens = int(mask.sum())
    mean = 0.0 if shift_mean else masked_mean(values, mask)
    unit = whiten(values, mask, shift_mean=shift_mean) - mean
    return (unit * math.sqrt((tokens - 1) / tokens) + mean).masked_fill(~mask, 0.0)


def per_token(loss: Any, inputs: tuple[Tensor, ...], cliprange: float) -> Tensor:
    """What each token adds to a loss of ours: the loss of that token as the only one of a batch."""

    def one(*token: Tensor) -> Tensor:
        return loss(*(each.view(1, 1) for each in token), cliprange=cliprange, tokens=1)

    return torch.vmap(one)(*(each.flatten() for each in inputs)).view_as(inputs[0])


def policy_inputs(rollout: Rollout, micro: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """For `policy_loss`: TRL's log-probs, our advantages in its convention."""
    rows = micro["micro_batch_inds"]
    advantages = whiten_as_trl(rollout.advantages_and_returns()[0], rollout.mask)
    return micro["new_logprobs"], rollout["logprobs"][rows], advantages[rows], rollout.mask[rows]


def value_inputs(rollout: Rollout, micro: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """For `value_loss`: TRL's values, our returns in its convention."""
    rows = micro["micro_batch_inds"]
    returns = rollout.advantages_and_returns()[1]
    return micro["vpred"], rollout["values"][rows], returns[rows], rollout.longer_mask[rows]


def assert_same(ours: Tensor, trl: Tensor) -> None:
    torch.testing.assert_close(ours, trl, rtol=1e-5, atol=2e-6)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Rollout]]:
    """Both runs, as TRL's environment wrote them."""
    folder = tmp_path_factory.mktemp("trl")
    script, out = Path(__file__).with_name("trl_rollout.py"), folder / "rollouts.pt"
    done = subprocess.run([TRL / "bin" / "python", script, out], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    settings = found.pop("settings")
    return {
        name: [Rollout(settings, name, each, each.pop("micro_batches")) for each in rollouts]
        for name, rollouts in found.items()
    }


@pytest.fixture(params=["plain", "whitened"])
def rollouts(request: pytest.FixtureRequest, recorded: dict[str, list[Rollout]]) -> list[Rollout]:
    return recorded[request.param]


@pytest.fixture
def plain(recorded: dict[str, list[Rollout]]) -> list[Rollout]:
    return recorded["plain"]


def test_the_rollouts_have_what_makes_agreement_hard(rollouts):
    """Short and cut-off completions; ratios, values and advantages on every side of what is clipped."""
    for rollout in rollouts:
        assert 3 <= rollout.ended_early.sum() <= 13
        assert rollout.mask.sum(dim=1).unique().numel() > 3
        second = rollout.epochs()[1]
        sides = {
            (int(r > 1.2) - int(r < 0.8), a > 0)
            for micro in second
            for new, old, advantage, mask in [policy_inputs(rollout, micro)]
            for r, a in zip(ratio(new, old, mask)[mask].tolist(), advantage[mask].tolist(), strict=True)
        }
        assert len(sides) == 6
        moved = torch.cat([(micro["vpred"] - micro["mb_values"]).abs().flatten() for micro in second])
        assert (moved > 0.2).any() and ((moved > 0) & (moved < 0.2)).any()
        for new, old, _, mask in (policy_inputs(rollout, micro) for micro in second):
            assert (new - old)[mask].abs().max() < LOG_RATIO_LIMIT, "beyond it our ratio stays and TRL's goes on"


def test_trls_value_mask_is_the_token_mask_and_one_more(rollouts):
    for rollout in rollouts:
        one_more = torch.cat([torch.ones_like(rollout.mask[:, :1]), rollout.mask[:, :-1]], dim=1)
        assert torch.equal(rollout.longer_mask, rollout.mask | one_more)


def test_the_kl_is_the_same_k1_and_k3(recorded):
    for rollout in recorded["plain"]:
        assert_same(sequence_kl(rollout["logprobs"], rollout["ref_logprobs"], rollout.mask), rollout["kl"].sum(dim=1))
    for rollout in recorded["whitened"]:
        assert_same(k3(rollout["logprobs"], rollout["ref_logprobs"], rollout.mask), rollout["kl"])


def test_the_rewards_are_the_same(rollouts):
    for rollout in rollouts:
        assert_same(rollout.rewards(), rollout["rewards"])


def test_the_advantages_and_returns_are_the_same(rollouts):
    for rollout in rollouts:
        advantages, returns = rollout.advantages_and_returns()
        assert_same(advantages, rollout["raw_advantages"])
        assert_same(returns, rollout["returns"])
        assert_same(whiten_as_trl(advantages, rollout.mask), rollout["advantages"])


@pytest.mark.parametrize(
    ("loss", "inputs", "trl", "cliprange", "of_new", "coefficient", "half"),
    [
        (policy_loss, policy_inputs, "pg_loss", "cliprange", "grad_logprobs", None, 1.0),
        (value_loss, value_inputs, "vf_loss", "cliprange_value", "grad_vpred", "vf_coef", 0.5),
    ],
    ids=["policy", "value"],
)
def test_the_losses_are_the_same(rollouts, loss, inputs, trl, cliprange, of_new, coefficient, half):
    """Of each token and of each micro-batch, and so is the gradient. TRL halves squared errors after its mean."""
    for rollout in rollouts:
        limit = rollout.settings[cliprange]
        for micro in rollout.micro_batches:
            new, *rest, mask = inputs(rollout, micro)
            assert_same(per_token(loss, (new, *rest, mask), limit)[mask], half * micro[f"{trl}_max"][mask])

            new = new.detach().requires_grad_()
            mean = loss(new, *rest, mask, cliprange=limit, tokens=int(mask.sum()))
            assert_same(mean.detach(), micro[trl])
            weight = rollout.settings[coefficient] if coefficient else 1.0
            assert_same(weight * torch.autograd.grad(mean, new)[0], micro[of_new])


def test_difference_trl_puts_the_score_after_the_last_token(plain):
    """Ours is on the last token, y_n, whose advantage then has it in full. On the PAD after EOS it is discounted once
    more, and a value that no action follows takes its place in part:

        A_t(TRL) - A_t(ours) = (gamma lam)^(n - t) (gamma (lam score + (1 - lam) V(after)) - score)

    With TRL's defaults, gamma 1 and lam 0.95, and values of 0, an advantage of 1 becomes 0.95. Completions with no PAD
    after them have the score on their last token in both: in TRL it depends on the width of the batch.
    """
    for rollout in plain:
        gamma, lam = rollout.settings["gamma"], rollout.settings["lam"]
        mask, early, last = rollout.mask, rollout.ended_early, rollout.mask.sum(dim=1) - 1
        rewards = rollout.penalty_and_score(mask)
        advantages, _ = rollout.estimate(rewards, mask)

        moved = rollout["rewards"] - rewards
        rows = torch.arange(len(last))[early]
        assert_same(moved[rows, last[rows] + 1], rollout["scores"][early])
        assert_same(moved[rows, last[rows]], -rollout["scores"][early])
        assert moved[~early].abs().max() == 0.0

        after = rollout["values"][rows, last[rows] + 1]
        score = rollout["scores"][early]
        at_the_end = gamma * (lam * score + (1 - lam) * after) - score
        to_the_end = (last[:, None] - torch.arange(mask.shape[1]))[early]
        expected = ((gamma * lam) ** to_the_end * at_the_end[:, None]).masked_fill(~mask[early], 0.0)
        difference = (rollout["raw_advantages"] - advantages).masked_fill(~mask, 0.0)
        assert_same(difference[early], expected)
        assert_same(difference[~early], torch.zeros_like(difference[~early]))
        assert difference[early].abs().max() > 0.05


def test_difference_trl_trains_a_value_of_the_state_after_the_end(plain):
    """It learns the score there, and the mean of the value loss counts that state as a token."""
    for rollout in plain:
        only_after = rollout.longer_mask & ~rollout.mask
        assert_same(rollout["returns"][only_after], rollout["scores"][rollout.ended_early])


def test_difference_trl_whitens_with_bessels_correction(rollouts):
    """Of some hundred tokens it is a third of a percent, of one token a division by zero."""
    for rollout in rollouts:
        tokens = int(rollout.mask.sum())
        ours, trl = whiten(rollout["raw_advantages"], rollout.mask), rollout["advantages"]
        factor = (ours / trl)[rollout.mask & (trl.abs() > 0.1)]
        assert_same(factor, torch.full_like(factor, math.sqrt(tokens / (tokens - 1))))
        assert 1.001 < factor[0] < 1.01


def test_difference_trl_averages_micro_batches_of_unlike_length(rollouts):
    """Its tokens weigh more in a micro-batch with few of them. Ours weigh the same, however the minibatch is split."""
    for rollout in rollouts:
        inputs = [policy_inputs(rollout, micro) for micro in rollout.epochs()[1]]
        tokens = sum(int(mask.sum()) for *_, mask in inputs)
        limit = rollout.settings["cliprange"]
        parts = [policy_loss(*each, cliprange=limit, tokens=tokens) for each in inputs]
        together = [torch.cat(each) for each in zip(*inputs, strict=True)]
        whole = policy_loss(*together, cliprange=limit, tokens=tokens)
        assert_same(torch.stack(parts).sum(), whole)
        trl = torch.stack([micro["pg_loss"] for micro in rollout.epochs()[1]]).mean()
        assert abs(whole - trl) > 1e-3


def test_difference_trl_takes_one_step_an_epoch_whatever_its_minibatches(rollouts):
    """Two minibatches to an epoch, and the first one's update should show in the second. But TRL hands accelerate all
    of a rollout's micro-batches as those of one step. Its first ratios are off 1 by rounding alone: it takes the old
    log-probs from generation."""
    for rollout in rollouts:
        first, second = (
            max(float((micro["new_logprobs"] - micro["mb_logprobs"]).abs().max()) for micro in epoch)
            for epoch in rollout.epochs()
        )
        assert first < 1e-4 and second > 0.5
