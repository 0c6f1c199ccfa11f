"""Simple preference optimisation: DPO without the reference, on log-probabilities a token.

Meng et al. 2024 (arXiv:2405.14734), equation 6. With r(y) = beta log pi(y|x) / |y|, the mean log-probability of y's
tokens times beta,

    L = - log sigmoid(r(chosen) - r(rejected) - gamma)

Generation ranks completions by their mean log-probability, and so does this loss: nothing is gained by length. The
margin `gamma` says by how much the chosen one is to win. Nothing holds the policy near its start but a small learning
rate and few epochs, so watch `eval/kl_to_reference`. When both are equally likely a token the loss is
log(1 + exp(gamma)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.context import Context
from tasks.settings import Training
from tasks.tuning import Paired

if TYPE_CHECKING:
    from torch import Tensor


def loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Equation 6 for each pair, (B,), from the mean log-probabilities a token of its completions, (B,) each."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (chosen - rejected) - gamma)


class SimPO(Paired):
    """Trains a copy of `policy` on pairs."""

    shown: ClassVar[tuple[str, ...]] = ("beta", "gamma", *Training.shown)

    beta: float = Field(2.0, gt=0)
    """Worth of a nat a token; the paper's are 2 to 10."""
    gamma: float = Field(1.0, ge=0)
    """By how much the chosen completion is to win; the paper advises 0.2 to 0.8 times beta."""
    learning_rate: float = Field(1e-6, gt=0)
    """The highest, reached after the warm-up."""

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.pair_trainer import train_pairs

        return train_pairs(self, ctx, lambda chosen, rejected: loss(chosen, rejected, beta=self.beta, gamma=self.gamma))
