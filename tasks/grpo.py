"""Group relative policy optimisation: a completion is as good as it is better than its group.

Shao et al. 2024 (arXiv:2402.03300), section 4.1. Of each prompt x, G = `num_generations` completions y_1 .. y_G are
sampled and scored. The advantage of every token of y_i is

    A_i = (score_i - mean of the group) / (standard deviation of the group + 1e-4)

(`scale_rewards: none` leaves out the division, as Liu et al. 2025, arXiv:2503.20783, advise, since it makes much of
prompts whose scores hardly differ; `batch` divides by the deviation over the rollout). The loss of token t, with s_t
what stands before it,

    ratio_t = pi(y_t|s_t) / pi_old(y_t|s_t),          x_t = log pi(y_t|s_t) - log pi_ref(y_t|s_t)
    l_t = - min(ratio_t A_i, clip(ratio_t, 1 - cliprange, 1 + cliprange) A_i) + kl_coef ratio_t (exp(-x_t) - 1 + x_t)

is averaged as `loss_type` says. With one step on a rollout the ratio is 1 and nothing is clipped.

The KL term is a loss here, not a part of the reward. The paper's, without the ratio before it ("k3"), has the gradient
of the KL from the reference to the policy, and its fixed point is not pi_ref exp(score / kl_coef). TRL's, with the
ratio, has at ratio 1 the gradient x_t grad log pi(y_t|s_t): that of each token's KL to the reference, as if what comes
before were given. So the pull towards the reference is right token by token, but no token answers for the KL of those
after it, and scores divided by their deviation are no longer in units of `kl_coef`: for completions of more than one
token, or with that division, the fixed point is not pi_ref exp(score / kl_coef) either, to which PPO and RLOO go.

TRL's GRPOTrainer computes it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.context import Context, Execution
from tasks.rl.groups import Groups


class GRPO(Groups):
    """Trains a copy of `policy` against `reward` (or programs)."""

    num_generations: int = Field(8, ge=2)
    """Completions of each prompt: a group."""
    kl_coef: float = Field(0.04, ge=0)
    """Weight of the KL term beside the advantages; 0 keeps no reference."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of their group, of the whole rollout, or nothing."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    """How token losses become one: `dapo` sums over the rollout / its tokens; `grpo` means within each completion, then
    over completions (so tokens of short ones weigh more); `dr_grpo` sums / (completions times `max_new_tokens`);
    `bnpo` as dapo, but within each micro-batch."""

    def keyed_micro_batch(self, execution: Execution) -> int | None:
        """`bnpo` divides by the tokens of the micro-batch."""
        return self.micro_batch(execution) if self.loss_type == "bnpo" else None

    def run(self, ctx: Context) -> dict[str, float]:
        from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

        from tasks.rl.group_trainer import train

        return train(
            self, ctx, GRPOTrainer, GRPOConfig, scale_rewards=self.scale_rewards, loss_type=self.loss_type
        )  # fmt: skip
