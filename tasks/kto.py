"""Kahneman-Tversky optimisation: learn from completions that were liked or not, without pairs.

Ethayarajh et al. 2024 (arXiv:2402.01306), equations 7 and 8. With the log-ratio r(x, y) = log pi(y|x) - log pi_ref(y|x)
and the reference point z0, an estimate of KL(pi || pi_ref),

    L = lambda_D (1 - sigmoid(beta (r - z0)))      for a desirable completion
    L = lambda_U (1 - sigmoid(beta (z0 - r)))      for an undesirable one

so a completion counts by how far it stands out from what the policy does anyway, and less the further out it is.
z0 = max(0, mean of r(x, y') over prompts with the completion y' of another row); no gradient flows through it. At the
first step r and z0 are 0 and the loss of every row is lambda / 2.

z0 is taken over all rows of an optimizer step (TRL takes it over the micro-batch), so that the micro-batch changes
nothing; each row keeps its other completion y' throughout, and log pi_ref is computed once, before training.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from artifacts.errors import DataError
from artifacts.kinds import Feedback
from tasks.context import Context
from tasks.memory import rows as row_memory
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.settings import Training
from tasks.tuning import Tuning

if TYPE_CHECKING:
    from torch import Tensor


def loss(
    ratios: Tensor, desirable: Tensor, z0: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """The equations above for each row, (B,): `ratios` (B,) in nats, `desirable` (B,) bool, `z0` a scalar."""
    import torch

    sign, weight = desirable.float() * 2 - 1, torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * sign * (ratios - z0)))


class KTO(Tuning):
    """Trains a copy of `policy` on labelled completions; the reference is what it starts from."""

    shown: ClassVar[tuple[str, ...]] = ("beta", "desirable_weight", "undesirable_weight", *Training.shown)

    data: Feedback
    beta: float = Field(0.1, gt=0)
    """Reward = beta times log-ratio: the smaller, the further the policy may move from the reference."""
    desirable_weight: float = Field(1.0, gt=0)
    """lambda_D. Where labels are unequal in number, the paper wants lambda_D n_D / (lambda_U n_U) in [1, 4/3]."""
    undesirable_weight: float = Field(1.0, gt=0)
    """lambda_U."""
    batch_size: int = Field(8, ge=2)
    """Rows in one optimizer step; z0 is their mean, so the more the steadier."""
    learning_rate: float = Field(1e-6, gt=0)
    """The highest, reached after the warm-up."""
    eval_rows: int = Field(64, ge=0)
    """Held-out rows on which rewards are measured at the end; 0 for none."""

    def memory_of(self, case: Case) -> Memory:
        return row_memory.feedback(case)

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.feedback_trainer import train_feedback
        from tasks.training.rows import load_rows

        rows, tests = load_rows(self.data, "train"), load_rows(self.data, "test")[: self.eval_rows]
        self._look_at(sum(row["label"] for row in rows), len(rows), ctx)
        own_loss = partial(
            loss, beta=self.beta, desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight
        )
        return train_feedback(self, rows, tests, ctx, own_loss, self.beta)

    def _look_at(self, desirable: int, rows: int, ctx: Context) -> None:
        """Refuse one label alone; say so if the two weigh unequally."""
        undesirable = rows - desirable
        if not desirable or not undesirable:
            only = "undesirable" if undesirable else "desirable"
            raise DataError(f"wanted rows of both labels, got {rows} {only} ones; add rows of the other label")
        balance = self.desirable_weight * desirable / (self.undesirable_weight * undesirable)
        ctx.say(f"{desirable} desirable and {undesirable} undesirable rows; by weight {balance:.2f} to 1")
        if not 0.99 <= balance <= 1.34:
            ctx.say(
                f"warning: the paper advises 1 to 1.33; desirable_weight: "
                f"{self.undesirable_weight * undesirable / desirable:.3g} would give 1"
            )
