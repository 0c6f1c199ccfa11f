"""PPO's quantities, each a function of tensors: from log-probabilities and scores to two losses.

Everything is (B, T): B completions, T their longest length, `mask` (bool) true where a token was sampled. What stands
where the mask is false is never read, NaN included. All in float32.

For a prompt x and a completion y of tokens y_1 .. y_n, state s_t is x with y_1 .. y_{t-1}, and the action is y_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Beyond this a log-ratio counts as this much, so that exp stays finite."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask`."""
    return _kept(values, mask).sum() / mask.sum()


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with 0 outside the mask; a product would let NaN through."""
    return values.masked_fill(~mask, 0.0)


def token_rewards(scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Ziegler et al. 2019 (arXiv:1909.08593), equation 2: a KL penalty at every token, the score at the last one.

        r_t = -kl_coef (log pi(y_t|s_t) - log pi_ref(y_t|s_t)) + [t = n] score

    `scores` is (B,). This estimator of KL (the log-ratio itself, "k1") is the one whose use as a reward has its optimum
    at pi_ref exp(score / kl_coef); others, unbiased as they are as figures, move the optimum elsewhere.
    """
    import torch

    rewards = _kept(-kl_coef * (logps - ref_logps), mask)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last.clamp(min=0), torch.where(last >= 0, scores[:, None], 0.0))


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """To variance 1 (biased, as in the original code) and mean 0 over all tokens in the mask, 0 outside it.

    Without `shift_mean` they keep the mean that they had; single values may change their sign, as in the original code.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * (variance + 1e-8).rsqrt()
    return _kept(whitened if shift_mean else whitened + mean, mask)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: Schulman et al. 2016 (arXiv:1506.02438), equation 16.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t),   A_t = delta_t + gamma lam A_{t+1}

    with V and A zero after the last token. Returns, A_t + V(s_t), are what the value model learns; they come from these
    advantages, before any whitening.
    """
    import torch

    rewards, values = _kept(rewards, mask), _kept(values, mask)
    after = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(after)
    found = []
    for t in reversed(range(values.shape[1])):  # outside the mask all is 0, so the recursion starts anew at each end
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = torch.where(mask[:, t], delta + gamma * lam * after, 0.0)
        next_value = values[:, t]
        found.append(after)
    advantages = torch.stack(found[::-1], dim=1)
    return advantages, _kept(advantages + values, mask)


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, cliprange: float, tokens: int
) -> Tensor:
    """The clipped surrogate: Schulman et al. 2017 (arXiv:1707.06347), equation 7: the sum over tokens, divided by
    `tokens`.

        ratio_t = pi(y_t|s_t) / pi_old(y_t|s_t)
        L = - sum_t min(ratio_t A_t, clip(ratio_t, 1 - cliprange, 1 + cliprange) A_t) / tokens

    `tokens` is the number of tokens in the whole minibatch, so that the sum over its micro-batches is the same however
    it was split.
    """
    import torch

    change = ratio(logps, old_logps, mask)
    unclipped, clipped = change * advantages, change.clamp(1 - cliprange, 1 + cliprange) * advantages
    return -_kept(torch.minimum(unclipped, clipped), mask).sum() / tokens


def ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """pi / pi_old for each token, 1 outside the mask."""
    return _kept(logps - old_logps, mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange: float, tokens: int
) -> Tensor:
    """Half the squared error, the larger of the plain and the clipped one: the sum over tokens, divided by `tokens`.

    As in OpenAI's code for Ziegler et al. 2019: the new value counts as at most `cliprange` away from the old one.
    """
    import torch

    values, old_values, returns = (_kept(each, mask) for each in (values, old_values, returns))
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).sum() / tokens


@dataclass
class KLController:
    """The KL coefficient: fixed, or adapted so that a completion's KL nears a target.

    Ziegler et al. 2019, section 2.2: after each rollout of n completions with mean KL (nats a completion),

        kl_coef *= 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon
    """

    kl_coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """Take in one rollout; without a target nothing changes."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * completions / self.horizon


def sequence_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x) of each completion, (B,): its mean over samples of pi is the KL divergence."""
    return _kept(logps - ref_logps, mask).sum(dim=1)


def k3(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """Schulman's k3 of each token, exp(-x) - 1 + x with x the log-ratio: never negative, so less noisy than k1.

    For pi the distribution that was sampled from. A figure only: see `token_rewards`.
    """
    log_ratio = _kept(logps - ref_logps, mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (-log_ratio).exp() - 1 + log_ratio


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is perfect, 0 as good as a constant, below worse."""
    errors, wanted = (returns - values)[mask], returns[mask]
    variance = wanted.var(unbiased=False)
    return float(1 - errors.var(unbiased=False) / variance) if variance > 0 else 0.0
