"""What RLOO and GRPO share: several completions of a prompt are one another's baseline, so no value model is needed.

One rollout after another: sample `num_generations` completions of each prompt, score them, call a completion good by
how much it beats the others of its group, and raise or lower its probability by that.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from tasks.context import Execution
from tasks.memory.online import groups
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.parallel.settings import mode_problem
from tasks.rl.online import Online
from tasks.stage import Terms

MICRO_BATCH = 8
"""Rows of a forward and backward pass where the execution does not say: more are hardly faster, and need the memory."""


def _as(name: str) -> Callable[[Any, Mapping[str, Any]], str]:
    return lambda value, fields: f"{name}: {value}"


def _length(value: Any, fields: Mapping[str, Any]) -> str:
    return "total_episodes: completions sampled in all (by default one pass over the prompts)"


def _batch(value: Any, fields: Mapping[str, Any]) -> str:
    return f"batch_size: {value} for completions in an optimizer step, over all of its micro-batches"


RENAMED: dict[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "beta": _as("kl_coef"),
    "init_kl_coef": _as("kl_coef"),
    "epsilon": _as("cliprange"),
    "clip_range": _as("cliprange"),
    "max_completion_length": _as("max_new_tokens"),
    "response_length": _as("max_new_tokens"),
    "per_device_train_batch_size": _batch,
    "generation_batch_size": _batch,
    "train_batch_size": _batch,
    "rloo_k": _as("num_generations"),
    "group_size": _as("num_generations"),
    "mu": _as("num_iterations"),
    "num_ppo_epochs": _as("num_iterations"),
    "num_train_epochs": _length,
    "epochs": _length,
    "max_steps": _length,
    "lr": _as("learning_rate"),
    "min_lr": _as("min_learning_rate"),
    "reward_model": _as("reward"),
    "reward_funcs": _as("reward"),
}
"""Names that the settings have in TRL and elsewhere."""


class Groups(Online):
    """A stage that learns from groups of completions of the same prompt, one optimizer step (or more) a rollout."""

    renamed: ClassVar[Mapping[str, Any]] = RENAMED
    shown: ClassVar[tuple[str, ...]] = ("num_generations", *Online.shown)

    kl_coef: float = Field(0.05, ge=0)
    """What a nat of KL costs, in units of score; 0 keeps no reference."""
    num_generations: int = Field(4, ge=2)
    """Completions of each prompt: a group."""
    batch_size: int = Field(32, ge=2)
    """Completions in a rollout, all of which make one optimizer step; a multiple of `num_generations`."""
    total_episodes: int | None = Field(None, ge=1)
    """Completions sampled in all, rounded up to whole rollouts; by default one pass over the distinct prompts."""
    num_iterations: int = Field(1, ge=1)
    """Optimizer steps on each rollout."""
    cliprange: float = Field(0.2, gt=0)
    """How far a ratio of probabilities may move from 1 before it counts no further; with one step on each rollout it
    does not move."""
    learning_rate: float = Field(1e-4, gt=0)
    """The highest, reached after the warm-up."""
    min_learning_rate: float = Field(0.0, ge=0)
    """Where the cosine ends."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """The share of all steps in which the rate rises from 0."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size: wanted a multiple of num_generations {self.num_generations}, got {self.batch_size}"
            )
        return self

    def rollouts(self, prompts: int) -> int:
        """Rollouts in all, on so many distinct prompts."""
        return math.ceil((self.total_episodes or prompts * self.num_generations) / self.batch_size)

    def steps(self, rows: int) -> int:
        return self.rollouts(rows) * self.num_iterations

    def rollout_rows(self) -> int:
        return self.batch_size

    def episodes(self, rows: int) -> int:
        return self.rollouts(rows) * self.batch_size

    def memory_of(self, case: Case, terms: Terms) -> Memory | None:
        how = self.sampled(self.batch_size, terms)
        if how is None:
            return None
        reference = 4 * case.shape.parameters if case.adapted is None else 4 * case.adapted.parameters
        switched_off = self.lora is not None or self.kl_coef == 0
        return groups(
            case, self.judge(terms), how, reference=0 if switched_off else reference, validates=self.eval_rows > 0
        )

    def widest_pass(self) -> int:
        return self.batch_size

    def micro_batch(self, execution: Execution) -> int:
        """Rows of one forward and backward pass."""
        if execution.micro_batch is not None:
            return min(execution.micro_batch, self.batch_size)
        return max(size for size in range(1, MICRO_BATCH + 1) if self.batch_size % size == 0)

    def execution_problem(self, execution: Execution) -> str | None:
        """Every optimizer step is a whole number of forward passes; in one process, since TRL's groups hang on that."""
        if problem := mode_problem((), execution.launch):
            return problem
        if self.batch_size % self.micro_batch(execution) == 0:
            return None
        return f"wanted execution.micro_batch to divide batch_size {self.batch_size}, got {execution.micro_batch}"


class Order:
    """Which prompts TRL samples from, rollout after rollout; depends on its arguments alone.

    One pass over all rollouts: every prompt once in an order of its own for each pass over the data, and the last
    rollout filled from the next pass. TRL wants each rollout's rows again for every micro-batch that uses it.
    """

    def __init__(self, stage: Groups, prompts: int, seed: int) -> None:
        self.prompts, self.seed, self.copies = prompts, seed, stage.num_generations
        self.groups, self.rollouts = stage.batch_size // stage.num_generations, stage.rollouts(prompts)
        self.uses = 1
        """Micro-batches that are taken of one rollout; known once there is a trainer."""

    def __len__(self) -> int:
        return self.rollouts * self.uses * self.groups * self.copies

    def __iter__(self) -> Iterator[int]:
        endless = itertools.chain.from_iterable(map(self._pass, itertools.count()))
        for _ in range(self.rollouts):
            group = list(itertools.islice(endless, self.groups))
            yield from [place for place in group for _ in range(self.copies)] * self.uses

    def _pass(self, number: int) -> list[int]:
        order = list(range(self.prompts))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        return order
