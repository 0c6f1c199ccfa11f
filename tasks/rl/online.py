"""Fields that every method shares which learns from its own completions: PPO, RLOO, GRPO."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from artifacts.kinds import Adapter
from tasks.lora import whole_modules_problem
from tasks.rl.settings import Sampling
from tasks.settings import Optimizing
from tasks.shape import ModelShape
from tasks.stage import Estimate
from tasks.tuning import FromPolicy


class Online(FromPolicy, Sampling, Optimizing):
    """A stage that trains the policy that it samples from; the KL penalty is measured against its start, frozen."""

    models_trained: ClassVar[int] = 1
    """The policy; a value model would be another."""

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

    def trained(self, shape: ModelShape) -> int | None:
        """How many of the policy's parameters receive gradients; None while its adapter does not exist."""
        if isinstance(self.policy, Adapter):
            return shape.adapter_parameters(self.policy)
        return shape.parameters if self.lora is None else self.lora.parameters(shape)

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many prompts."""
        raise NotImplementedError

    def rows_in_memory(self) -> int:
        """Rows of the largest forward and backward pass, unless the execution says fewer."""
        raise NotImplementedError

    def estimate(self) -> Estimate:
        """Parameters and memory from the base's configuration, steps from the data's report; needs no torch."""
        shape, rows = ModelShape.of(self.policy), self.data.train_rows()
        steps = None if rows is None else self.steps(rows)
        trained = None if shape is None else self.trained(shape)
        if shape is None or trained is None:
            return Estimate(shape.parameters if shape else None, None, steps, None)
        added = 0 if trained == shape.parameters else self.models_trained * trained
        memory = shape.training_bytes(self.models_trained * trained, self.rows_in_memory(), moments=self.moment_bytes())
        return Estimate(shape.parameters + added, trained, steps, memory)
