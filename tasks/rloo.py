"""REINFORCE leave-one-out: the others of a group are the baseline.

Ahmadian et al. 2024 (arXiv:2402.14740), section 3.3; Kool et al. 2019. Of each prompt x, k = `num_generations`
completions y_1 .. y_k are sampled. Each one's reward is its score less the KL penalty of the whole completion, and what
it is compared with is the mean reward of the other k - 1, which knows nothing of y_i and so does not bias the gradient:

    R_i = score(x, y_i) - kl_coef (log pi(y_i|x) - log pi_ref(y_i|x))
    A_i = R_i - mean of R_j over j != i            ( = k/(k - 1) times R_i's distance from the mean of all k )
    L   = - mean_i A_i log pi(y_i|x)

The log-ratio itself ("k1") stands in the reward, computed with the policy that sampled, and no gradient flows through
it; so the optimum is pi_ref exp(score / kl_coef), PPO's and DPO's. A completion is one action: every token gets the
same advantage, and there is no value model. In code the gradient of log pi comes through a ratio, as in PPO,

    ratio_i = pi(y_i|x) / pi_old(y_i|x)
    L = - mean_i min(ratio_i A_i, clip(ratio_i, 1 - cliprange, 1 + cliprange) A_i)

of whole completions. With one step on a rollout the ratio is 1 and nothing is clipped; `num_iterations` takes more.

TRL's RLOOTrainer computes it.
"""

from __future__ import annotations

from tasks.context import Context
from tasks.rl.groups import Groups


class RLOO(Groups):
    """Trains a copy of `policy` against `reward` (or programs)."""

    normalize_advantages: bool = False
    """Bring the advantages of each rollout, KL penalty included, to mean 0 and variance 1."""

    def run(self, ctx: Context) -> dict[str, float]:
        from trl import RLOOConfig, RLOOTrainer  # type: ignore[attr-defined]

        from tasks.rl.group_trainer import train

        return train(self, ctx, RLOOTrainer, RLOOConfig, normalize_advantages=self.normalize_advantages)
