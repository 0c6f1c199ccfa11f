"""Fields that every training stage has, and what follows from them before anything is loaded."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from artifacts.kinds import Adapter, Dataset, Model, Quantized, base_of
from tasks.context import Execution
from tasks.lora import LoRA, whole_modules_problem
from tasks.memory import rows as row_memory
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.parallel.settings import SHARDED, SPLIT_CHANGES_IT, WHOLE, Modes, mode_problem, rows_problem
from tasks.shape import ModelShape
from tasks.stage import Estimate, Stage, Terms
from tasks.training.rows import epoch_order


class Optimizing(Stage):
    """Takes optimizer steps."""

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps the two moments in 8 bits, with a scale for each block (arXiv:2110.02861): 2 bytes for each
    trained parameter instead of 8. What has fewer than 4,096 elements keeps them in 32 bits."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    def moment_bytes(self) -> int:
        """Of a trained parameter's two moments."""
        return 8 if self.optimizer == "adamw" else 2

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many training rows."""
        raise NotImplementedError  # rows, PPO's rollouts and TRL's groups are each counted in a way of their own

    def planned_steps(self, data: Dataset, lengths: Lengths | None) -> tuple[int | None, bool]:
        """Optimizer steps, and whether they may be fewer: before the data is there, lines of its file count as rows."""
        if (rows := data.train_rows()) is not None:
            return self.steps(rows), False
        if lengths is None:
            return None, False
        return self.steps(lengths.rows), self.steps(1) < self.steps(lengths.rows)


class Training(Optimizing):
    """Optimisation: AdamW, linear warm-up, then cosine decay from `learning_rate` to `min_learning_rate`."""

    version: ClassVar[int] = 2  # 1 kept rows of equal length in the data's order within a group of batches
    modes: ClassVar[Modes] = WHOLE
    """What it can do in several processes."""
    shown: ClassVar[tuple[str, ...]] = ("learning_rate", "epochs", "batch_size")
    batch_size: int = Field(8, ge=1)
    """Rows in one optimizer step, over all processes and micro-batches."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """End after so many optimizer steps, whatever `epochs` says."""
    learning_rate: float = Field(2e-4, gt=0)
    """The highest, reached after the warm-up."""
    min_learning_rate: float = Field(0.0, ge=0)
    """Where the cosine ends."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """The share of all steps in which the rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on everything trained but biases and norms."""
    eval_interval: int | None = Field(None, ge=1)
    """Optimizer steps between two evaluations on the test split; by default once, at the end."""

    def dataset(self) -> Dataset:
        """The rows that it trains on."""
        raise NotImplementedError

    def start(self) -> Model:
        """The model that it starts from."""
        raise NotImplementedError

    def lora_settings(self) -> LoRA | None:
        """The adapters that it trains, None for all weights."""
        raise NotImplementedError

    def keyed_micro_batch(self, execution: Execution) -> int | None:
        """With dropout, the random numbers fall differently on other micro-batches."""
        lora = self.lora_settings()
        return None if lora is None or lora.dropout == 0 else self.micro_batch(execution)

    def widest_pass(self) -> int:
        return self.batch_size

    def micro_batch(self, execution: Execution) -> int:
        own = max(1, self.batch_size // execution.launch.processes)
        return min(execution.micro_batch or own, own)

    def execution_problem(self, execution: Execution) -> str | None:
        """Every optimizer step is a whole number of forward passes, in every process the same."""
        micro_batch, launch = execution.micro_batch, execution.launch
        if launch.several:
            return self.launch_problem(execution) or rows_problem(self.batch_size, micro_batch, launch.processes)
        if micro_batch is None or self.batch_size % micro_batch == 0:
            return None
        return f"wanted execution.micro_batch to divide batch_size {self.batch_size}, got {micro_batch}"

    def launch_problem(self, execution: Execution) -> str | None:
        """A mode that this stage can't do, or a result that would hang on how rows fall to processes."""
        if self.keyed_micro_batch(execution) is not None:
            return SPLIT_CHANGES_IT
        problem = mode_problem(self.modes, execution.launch)
        if problem is None and execution.launch.mode in SHARDED:
            return self._sharding_problem(execution.launch.mode)
        return problem

    def _sharding_problem(self, mode: str) -> str | None:
        """Why these weights and moments can't be divided, or None."""
        if isinstance(base_of(self.start()), Quantized):
            return f"wanted execution.launch.mode ddp, since 4-bit weights are not divided, got {mode}"
        if self.optimizer != "adamw":
            return f"wanted `optimizer: adamw` with execution.launch.mode {mode}, got {self.optimizer}"
        return None

    def steps(self, rows: int) -> int:
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.epochs * math.ceil(rows / self.batch_size)))

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.start())
        if shape is None:
            return 512 << 20
        trained = self.trained(shape) or shape.parameters // 10
        lora = self.lora_settings()
        whole = (lora is not None and lora.modules_to_save) or whole_modules_problem(self.start())
        weights = 8 if whole else 4  # embeddings that are the head go out twice
        return weights * trained + 3 * (weights + self.moment_bytes()) * trained + (64 << 20)  # the output; checkpoints

    def adapter_settings(self, terms: Terms) -> LoRA | None:
        start = self.start()
        return terms.adapters.get(start.key) if isinstance(start, Adapter) else self.lora_settings()

    def trained(self, shape: ModelShape, terms: Terms = Terms()) -> int | None:  # noqa: B008  (immutable)
        """How many parameters receive gradients; None while nothing is known of the adapter to start from."""
        start = self.start()
        if isinstance(start, Adapter):
            adapted = Adapted.of(shape, start, terms.adapters)
            return None if adapted is None else adapted.parameters
        lora = self.lora_settings()
        return shape.parameters if lora is None else lora.parameters(shape)

    def estimate(self, terms: Terms = Terms()) -> Estimate:  # noqa: B008  (immutable)
        """Parameters and memory from the base's configuration, steps and tokens from the data; needs no torch."""
        shape, lengths = ModelShape.of(self.start()), Lengths.of(self.dataset(), terms.bounds)
        steps, may_be_fewer = self.planned_steps(self.dataset(), lengths)
        tokens, is_bound = self._tokens(lengths, terms.seed), lengths is not None and lengths.is_bound
        trained = None if shape is None else self.trained(shape, terms)
        if shape is None or trained is None:
            return Estimate(shape.parameters if shape else None, None, steps, None, tokens, is_bound, may_be_fewer)
        added = 0 if trained == shape.parameters else trained
        return Estimate(shape.parameters + added, trained, steps, self.memory(terms), tokens, is_bound, may_be_fewer)

    def memory(self, terms: Terms) -> Memory | None:
        """By the formula of this way of training, as far as base and adapter are there."""
        shape, lengths = ModelShape.of(self.start()), Lengths.of(self.dataset(), terms.bounds)
        if shape is None or lengths is None:
            return None
        start, lora = self.start(), self.lora_settings()
        adapted = Adapted.start(shape, start, lora, terms.adapters)
        if adapted is None and (isinstance(start, Adapter) or lora is not None):
            return None
        case = Case(
            shape=shape, kind=terms.kind, adapted=adapted, moment_bytes=self.moment_bytes(),
            micro=self.micro_batch(terms.execution), batch=self.batch_size, lengths=lengths,
            checkpointing=terms.execution.checkpointing, evaluates=getattr(self, "eval_rows", 0) > 0,
        )  # fmt: skip
        return self.memory_of(case).with_holes(terms.kind, case.holes)

    def memory_of(self, case: Case) -> Memory:
        """The formula; a method with another way through its rows has another one."""
        return row_memory.sft(case)

    def _tokens(self, lengths: Lengths | None, seed: int) -> int | None:
        """Of all optimizer steps, in the very order in which rows are taken; a bound where rows are one."""
        if lengths is None:
            return None
        steps, each = self.steps(lengths.rows), lengths.totals()
        if len(each) < lengths.rows:
            return steps * self.batch_size * each[0]
        total, epoch = 0, 0
        while steps > 0:
            order = epoch_order(each, self.batch_size, seed, epoch)
            total += sum(each[i] for i in order[: steps * self.batch_size])
            steps, epoch = steps - math.ceil(len(order) / self.batch_size), epoch + 1
        return total
