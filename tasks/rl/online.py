"""Fields that every method shares which learns from its own completions: PPO, RLOO, GRPO."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from artifacts.kinds import Adapter
from tasks.lora import LoRA, whole_modules_problem
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.rl.settings import Sampling
from tasks.settings import Optimizing
from tasks.shape import ModelShape
from tasks.stage import Estimate, Terms
from tasks.tuning import FromPolicy


class Online(FromPolicy, Sampling, Optimizing):
    """A stage that trains the policy that it samples from; the KL penalty is measured against its start, frozen."""

    models_trained: ClassVar[int] = 1
    """The policy; a value model would be another."""

    shown: ClassVar[tuple[str, ...]] = (
        "total_episodes",
        "learning_rate",
        "kl_coef",
        "batch_size",
        "max_new_tokens",
        "temperature",
    )

    eval_rows: int = Field(64, ge=0)
    """Held-out prompts that are sampled from and scored before and after training; 0 for none."""

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        if self.lora is not None and self.lora.modules_to_save:
            raise ValueError(
                "lora.modules_to_save must be left out: policy, reference and reward share one base, and differ by "
                "adapters alone; train these modules in `sft`, and merge that"
            )
        return self

    def input_problem(self) -> str | None:
        """What trained modules whole can't be one of several adapters on a base."""
        for name, artifact in self.bound().items():
            if problem := whole_modules_problem(artifact):
                return f"{name}: {problem}"
        return super().input_problem()

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.policy)
        if shape is None:
            return 512 << 20
        trained = self.trained(shape) or shape.parameters // 10
        checkpoints = 3 * 2 * (6 + self.moment_bytes()) * trained  # policy, value, their moments
        return 4 * trained + checkpoints + (64 << 20)

    def adapter_settings(self, terms: Terms) -> LoRA | None:
        return terms.adapters.get(self.policy.key) if isinstance(self.policy, Adapter) else self.lora

    def adapted(self, shape: ModelShape, terms: Terms) -> Adapted | None:
        """The policy's adapter, there, planned or fresh; None for all weights, and where nothing is known of it."""
        return Adapted.start(shape, self.policy, self.lora, terms.adapters)

    def trained(self, shape: ModelShape, terms: Terms = Terms()) -> int | None:  # noqa: B008  (immutable)
        """How many of the policy's parameters receive gradients; None while nothing is known of its adapter."""
        if (adapted := self.adapted(shape, terms)) is not None:
            return adapted.parameters
        return None if isinstance(self.policy, Adapter) or self.lora is not None else shape.parameters

    def estimate(self, terms: Terms = Terms()) -> Estimate:  # noqa: B008  (immutable)
        """Parameters and memory from the base's configuration, steps and tokens from the data; needs no torch.

        The tokens are a bound: completions may end before `max_new_tokens`.
        """
        shape, tokens = ModelShape.of(self.policy), self._tokens(terms)
        steps, may_be_fewer = self.planned_steps(self.data, Lengths.of(self.data, terms.bounds))
        trained = None if shape is None else self.trained(shape, terms)
        if shape is None or trained is None:
            return Estimate(shape.parameters if shape else None, None, steps, None, tokens, True, may_be_fewer)
        adapted = self.adapted(shape, terms)
        added = 0 if adapted is None else self.models_trained * adapted.parameters
        return Estimate(shape.parameters + added, trained, steps, self.memory(terms), tokens, True, may_be_fewer)

    def _tokens(self, terms: Terms) -> int | None:
        """Of all rollouts, each completion after the longest prompt and as long as may be."""
        lengths, how = Lengths.of(self.data, terms.bounds), self.sampled(1, terms)
        return None if lengths is None or how is None else self.episodes(lengths.rows) * how.tokens

    def episodes(self, rows: int) -> int:
        """Completions in all, on so many prompts."""
        raise NotImplementedError  # PPO and the groups each have their own

    def memory(self, terms: Terms) -> Memory | None:
        """By the formula of this method, as far as base, adapter and reward model are there."""
        shape, lengths = ModelShape.of(self.policy), Lengths.of(self.data, terms.bounds)
        if shape is None or lengths is None or (self.reward is not None and self.judge(terms) is None):
            return None
        adapted = self.adapted(shape, terms)
        if adapted is None and (isinstance(self.policy, Adapter) or self.lora is not None):
            return None
        case = Case(
            shape=shape, kind=terms.kind, adapted=adapted, moment_bytes=self.moment_bytes(),
            micro=self.micro_batch(terms.execution) or 1, batch=self.rollout_rows(), lengths=lengths,
            checkpointing=terms.execution.checkpointing, evaluates=False,
        )  # fmt: skip
        found = self.memory_of(case, terms)
        return None if found is None else found.with_holes(terms.kind, self.holes(case))

    def holes(self, case: Case) -> float:
        """The allocator's share."""
        return case.holes

    def rollout_rows(self) -> int:
        """Completions in a rollout."""
        raise NotImplementedError  # PPO and the groups each have their own

    def memory_of(self, case: Case, terms: Terms) -> Memory | None:
        """The formula."""
        raise NotImplementedError  # PPO and the groups each have their own
