"""Proximal policy optimisation on a learned or programmed reward: the third stage of RLHF.

Ziegler et al. 2019 (arXiv:1909.08593); Ouyang et al. 2022 (arXiv:2203.02155). Seek the policy pi that maximises

    E [ score(x, y) ] - kl_coef KL( pi || pi_ref )

whose optimum is pi*(y|x) proportional to pi_ref(y|x) exp(score(x, y) / kl_coef): the same that DPO aims at with
beta = kl_coef, reached by sampling instead of from pairs. One rollout after another:

1. sample      a completion for each of `batch_size` prompts, at `temperature`              tasks/rl/sampler.py
2. score       score each completion; for each token compute its log-probability under
               policy and reference, and the return that the value model expects before it  tasks/rl/rollout.py
3. reward      the KL penalty at every token, the score at the last one; from these, how
               much better each token turned out than expected: its advantage               tasks/rl/objective.py
4. learn       `num_ppo_epochs` passes in `num_mini_batches` steps each: raise the
               probability of tokens by their advantage, but by no more than `cliprange`,
               since they were drawn from the policy as it was; fit the value model         tasks/rl/update.py

Policy, reference, value model and reward model are four adapters on one base in memory; where all weights are trained
they are models of their own (tasks/rl/roles.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts.kinds import Demonstrations
from tasks.context import Context, Execution
from tasks.memory.online import ppo
from tasks.memory.parts import ROLLOUT, Memory
from tasks.memory.rows import Case
from tasks.parallel.settings import WHOLE, mode_problem
from tasks.rl.online import Online
from tasks.rl.renamed import RENAMED
from tasks.shape import ModelShape
from tasks.stage import Terms


class PPO(Online):
    """Trains a copy of `policy` against `reward` (or programs), and beside it a value model.

    The value model starts from the reward model; without one it starts like the policy, with a head of zeros.
    """

    version: ClassVar[int] = 2  # 1 added the adapters' part after the product, and rounded otherwise
    renamed: ClassVar[Mapping[str, Any]] = RENAMED
    models_trained: ClassVar[int] = 2
    shown: ClassVar[tuple[str, ...]] = (*Online.shown, "num_ppo_epochs", "num_mini_batches", "cliprange", "schedule")

    kl_coef: float = Field(0.05, ge=0)
    """What a nat of KL costs, in units of score; the start value with the adaptive controller."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Keep `kl_coef`, or adapt it after each rollout so that the KL nears `target_kl`."""
    target_kl: float = Field(6.0, gt=0)
    """Nats a completion that the adaptive controller aims at."""
    horizon: int = Field(10_000, ge=1)
    """Episodes in which the adaptive controller may change `kl_coef` by about 20%."""
    cliprange: float = Field(0.2, gt=0)
    """How far a token's ratio may move from 1 before it counts no further."""
    cliprange_value: float = Field(0.2, gt=0)
    """The same for values, in units of score."""
    vf_coef: float = Field(0.1, gt=0)
    """Weight of the value loss. The value model has its own weights, and Adam cancels a constant factor; so this
    matters only through gradient clipping and Adam's epsilon."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount a token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda: 0 believes the value model, 1 only what was seen."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over each rollout."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimizer steps in each pass."""
    batch_size: int = Field(32, ge=1)
    """Episodes in a rollout, each a prompt with one completion."""
    total_episodes: int | None = Field(None, ge=1)
    """Episodes in all, rounded up to whole rollouts; by default one pass over the prompts."""
    whiten_rewards: bool = False
    """Bring rewards to variance 1 around their own mean in each rollout; this rescales `kl_coef` silently."""
    whiten_advantages: bool = True
    """Bring advantages to mean 0 and variance 1 in each rollout."""
    stop_token: str | None = "eos"
    """Ends a completion: `eos`, or one more token of the tokenizer; null always samples `max_new_tokens`."""
    mask_truncated: bool = False
    """Learn nothing from truncated completions."""
    cliprange_score: float | None = Field(None, gt=0)
    """Scores count as at most this, and at least minus this."""
    learning_rate: float = Field(5e-5, gt=0)
    """The policy's, at its highest."""
    value_learning_rate: float | None = Field(None, gt=0)
    """The value model's; by default the policy's."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How both rates fall, to 0 at the last step."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """The share of all steps in which the rates rise from 0."""
    early_stop_kl: float | None = Field(None, gt=0)
    """Skip the rest of a rollout's steps once the policy is this far from the one that sampled it (nats a token,
    half the mean squared log-ratio); after three such rollouts in a row the stage ends with the best policy so far."""
    max_kl: float | None = Field(None, gt=0)
    """End the stage with the best policy so far once the KL to the reference is over this (nats a completion)."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of the loss on `ptx_data` beside PPO's, so that what SFT taught is not forgotten."""
    ptx_data: Demonstrations | None = None
    """Demonstrations for `ptx_coef`."""
    top_layers: int | None = Field(None, ge=1)
    """Train policy and value model in the last k layers only; the layers below run once a rollout instead of in
    every pass, with the very same result."""
    sampling_batch_size: int = Field(32, ge=1)
    """Completions written at the same time. A field, since padding may move the last bits and with them a sample."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"num_mini_batches: wanted a divisor of batch_size {self.batch_size}, got {self.num_mini_batches}"
            )
        if self.mask_truncated and self.stop_token is None:
            raise ValueError(
                "mask_truncated: without a stop_token every completion is truncated; nothing would be learned"
            )
        if (self.ptx_coef > 0) != (self.ptx_data is not None):
            raise ValueError("ptx_coef and ptx_data go together: give both or neither")
        return self

    def rollouts(self, prompts: int) -> int:
        """Rollouts in all, on so many distinct prompts."""
        return math.ceil((self.total_episodes or prompts) / self.batch_size)

    def steps(self, rows: int) -> int:
        return self.rollouts(rows) * self.num_ppo_epochs * self.num_mini_batches

    def widest_pass(self) -> int:
        return self.batch_size // self.num_mini_batches

    def micro_batch(self, execution: Execution) -> int:
        return execution.micro_batch or min(8, self.widest_pass())

    def rollout_rows(self) -> int:
        return self.batch_size

    def episodes(self, rows: int) -> int:
        return self.rollouts(rows) * self.batch_size

    def trained(self, shape: ModelShape, terms: Terms = Terms()) -> int | None:  # noqa: B008  (immutable)
        """Of the policy; of its adapters only what is in the top layers."""
        if self.top_layers is None or (adapted := self.adapted(shape, terms)) is None:
            return super().trained(shape, terms)
        return adapted.top(self.top_layers).matrices(shape)

    def memory_of(self, case: Case, terms: Terms) -> Memory | None:
        how = self.sampled(min(self.sampling_batch_size, self.batch_size), terms)
        case = replace(case, micro=min(case.micro, self.widest_pass()))
        return None if how is None else ppo(case, self.judge(terms, shares=True), how, self.top_layers)

    def holes(self, case: Case) -> float:
        return ROLLOUT

    def execution_problem(self, execution: Execution) -> str | None:
        """Rows are divided among processes; weights are not."""
        return mode_problem(WHOLE, execution.launch)

    def watched_limits(self) -> bool:
        """Whether training may end early, so that the best policy so far must be kept."""
        return self.early_stop_kl is not None or self.max_kl is not None

    def rate_factor(self, step: int, steps: int) -> float:
        """What both learning rates are multiplied by at an optimizer step of so many."""
        warmup = math.ceil(self.warmup_ratio * steps)
        if step < warmup:
            return (step + 1) / warmup
        gone = (step - warmup) / max(1, steps - warmup)
        return {"constant": 1.0, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}[self.schedule]

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.rl.loop import Loop
        from tasks.training.trainable import save_trained

        loop = Loop(self, ctx)
        metrics = loop.run()
        save_trained(loop.roles.policy.model, self.policy, ctx, loop.roles.policy.adapter or "default")
        return metrics
