"""What a training stage starts from, a base or a policy, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from artifacts.kinds import Adapter, Artifact, Checkpoint, Dataset, Model, Preferences, Quantized
from tasks.context import Execution
from tasks.lora import LoRA
from tasks.memory import rows as row_memory
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.settings import Training
from tasks.stage import Stage


def _require_adapters(start: Model, lora: LoRA | None) -> None:
    """Raise ValueError for 4-bit weights that are to be trained themselves: their 16 values leave no room to move."""
    if isinstance(start, Quantized) and lora is None:
        raise ValueError(
            "lora: wanted settings for an adapter, since weights in 4 bits can't be trained; give `lora: {}`, or train "
            "all weights of the unquantised base"
        )


class OnBase(Training):
    """Trains an adapter on the base, a fresh one or one that goes on, or with `lora: null` all weights."""

    version: ClassVar[int] = 3  # 2 went on with an adapter's dropout, whose draws hang on the micro-batch

    base: Checkpoint
    adapter: Adapter | None = None
    """Go on with this adapter instead of a fresh one; its shape is taken over, and no dropout."""
    lora: LoRA | None = LoRA()
    """Settings of a fresh adapter; null trains all weights."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.adapter is not None and "lora" in self.model_fields_set and self.lora != LoRA():
            raise ValueError("lora must be left out when `adapter` gives the adapter to start from")
        if self.adapter is None:
            _require_adapters(self.base, self.lora)
        return self

    def input_problem(self) -> str | None:
        """An adapter goes on only on the base that it was trained on; a fresh one must fit it."""
        if self.adapter is None:
            return self.lora.problem(self.base) if self.lora else None
        if self.adapter.base.key == self.base.key:
            return None
        return (
            f"adapter: wanted one trained on the base {self.base.key[:12]}, got one trained on "
            f"{self.adapter.base.key[:12]}; give both the same base"
        )

    def start(self) -> Model:
        return self.adapter or self.base

    def lora_settings(self) -> LoRA | None:
        return self.lora


class FromPolicy(Stage):
    """Makes a copy of `policy` better: an adapter goes on as it is, a checkpoint gets a fresh one or trains whole."""

    policy: Model
    """Where training starts."""
    lora: LoRA | None = None
    """For a `policy` that is a complete checkpoint: train a fresh adapter instead of all weights."""

    @model_validator(mode="after")
    def _one_adapter(self) -> Self:
        if self.lora is not None and isinstance(self.policy, Adapter):
            raise ValueError("lora must be left out: `policy` is an adapter already, and goes on training as it is")
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout: wanted 0, since it would blur the log-probabilities that are compared here")
        _require_adapters(self.policy, self.lora)
        return self

    def input_problem(self) -> str | None:
        """A fresh adapter must fit the checkpoint."""
        return (self.lora.problem(self.policy) if self.lora else None) or super().input_problem()

    def output(self, key: str, path: Path) -> Artifact:
        if isinstance(self.policy, Adapter):
            return Adapter(key=key, path=path, base=self.policy.base)
        assert isinstance(self.policy, Checkpoint)
        if self.lora is None:
            return Checkpoint(key=key, path=path, like=self.policy)
        return Adapter(key=key, path=path, base=self.policy)


class Tuning(FromPolicy, Training):
    """Goes through rows."""

    data: Dataset

    def dataset(self) -> Dataset:
        return self.data

    def start(self) -> Model:
        return self.policy

    def lora_settings(self) -> LoRA | None:
        return self.lora

    def keyed_micro_batch(self, execution: Execution) -> int | None:
        """None, even with dropout: it is switched off, since it would blur the log-probabilities that are compared."""
        return None


class Paired(Tuning):
    """Learns from pairs by a loss that `beta` scales."""

    shown: ClassVar[tuple[str, ...]] = ("beta", *Training.shown)

    data: Preferences
    beta: float = Field(0.1, gt=0)
    """Worth of a unit of log-probability."""
    eval_rows: int = Field(64, ge=0)
    """Held-out pairs on which rewards are measured at the end; 0 for none."""

    def memory_of(self, case: Case) -> Memory:
        return row_memory.pairs(case)
