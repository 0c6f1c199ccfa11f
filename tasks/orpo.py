"""Odds ratio preference optimisation: learn to answer and to prefer in one go, from the base, with no reference.

Hong et al. 2024 (arXiv:2403.07691), equations 6 and 7. With p(y) = exp(mean log-probability of y's tokens) and
odds(y) = p / (1 - p),

    L = - log p(chosen) - beta log sigmoid(log(odds(chosen) / odds(rejected)))

The first term is SFT on the chosen completions, the second makes the rejected ones less likely beside them; `beta` is
the paper's lambda. Because the first term teaches the task, the policy may be a base that has seen no SFT. When both
are equally likely the second term is beta ln 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tasks.context import Context
from tasks.tuning import Paired

if TYPE_CHECKING:
    from torch import Tensor


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p: exact for p near 0, and bounded for p that rounds to 1."""
    import torch

    below_one = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))


def loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Equation 6 for each pair, (B,), from the mean log-probabilities a token of its completions, (B,) each."""
    from torch.nn.functional import logsigmoid

    return -chosen - beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


class ORPO(Paired):
    """Trains a copy of `policy` (a base will do) on pairs."""

    beta: float = Field(0.1, ge=0)
    """Weight of the odds ratio beside the SFT term (the paper's lambda)."""
    learning_rate: float = Field(8e-6, gt=0)
    """The highest, reached after the warm-up."""

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.pair_trainer import train_pairs

        return train_pairs(self, ctx, lambda chosen, rejected: loss(chosen, rejected, beta=self.beta))
