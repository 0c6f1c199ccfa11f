"""The one way into TRL's trainers: our arguments, our data order, our metrics, our checkpoints.

TRL's classes compute the losses. They are given token ids, never text, so that nothing is rendered, cut or dropped a
second time, and they report to a file, so that training needs no server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from artifacts.errors import NumberError, StageError
from tasks.context import Context
from tasks.parallel.consolidating import make_whole
from tasks.parallel.shares import Share
from tasks.settings import Training
from tasks.training.checkpoints import last_good, newest_checkpoint, saving
from tasks.training.recorder import Recorder, StepRecorder, saveable
from tasks.training.rows import EpochSampler

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
"""Transformers' names for them."""


def arguments(config: Any, stage: Training, ctx: Context, rows: int, tests: int, **more: Any) -> Any:
    """A configuration, TRL's or transformers' own, from a stage's fields and its context.

    `rows` and `tests` are the sizes of the two splits; `more` are the settings that only this trainer has.
    """
    micro = stage.micro_batch(ctx.execution)
    steps = stage.steps(rows)
    if "max_length" in config.__dataclass_fields__:  # rows were cut long ago
        more["max_length"] = None
    return config(
        **shared_arguments(stage, ctx, steps, micro), save_steps=save_interval(ctx),
        weight_decay=stage.weight_decay, per_device_eval_batch_size=max(micro * ctx.processes.count, 8),
        eval_strategy="steps" if tests else "no", eval_steps=stage.eval_interval or steps, **more,
    )  # fmt: skip


def save_interval(ctx: Context, multiple: int = 1) -> int:
    """Steps between two checkpoints: as many as were asked for, or so many more that they stand where they may."""
    whole = saveable(ctx, multiple)
    return whole * math.ceil(ctx.execution.save_interval / whole)


class Schedule(Protocol):
    """The fields that say how any stage's optimizer steps are taken."""

    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def min_learning_rate(self) -> float: ...
    @property
    def warmup_ratio(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def optimizer(self) -> str: ...


def shared_arguments(stage: Schedule, ctx: Context, steps: int, micro: int) -> dict[str, Any]:
    """What every TRL configuration gets: the schedule, where and when to log, and nothing done behind our back.

    `micro` is the rows of one forward and backward pass, of which each process makes one at a time.
    """
    cuda = ctx.device() == "cuda"
    return {
        "output_dir": str(saving(ctx.work)), "seed": ctx.seed, "data_seed": ctx.seed, "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": stage.batch_size // (micro * ctx.processes.count),
        # Without it DDP lays out its sums anew after the first step, and a resumed run would add in another order.
        "ddp_find_unused_parameters": True, "ddp_broadcast_buffers": False,
        "optim": OPTIMIZERS[stage.optimizer], "learning_rate": stage.learning_rate,
        "max_grad_norm": stage.max_grad_norm,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": stage.min_learning_rate / stage.learning_rate},
        "warmup_steps": math.ceil(stage.warmup_ratio * steps), "logging_steps": ctx.execution.log_interval,
        "logging_nan_inf_filter": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "steps", "save_total_limit": None, "bf16": False, "fp16": False,
        "gradient_checkpointing": ctx.execution.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False}, "use_cpu": not cuda, "dataloader_pin_memory": cuda,
    }  # fmt: skip


class Checked:
    """Mixed into a TRL trainer: a loss that is no number ends training before anything is stepped on."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]  # the trainer's, which comes after us
        if not loss.isfinite().all():
            raise NumberError(f"the loss became {float(loss)}")
        return loss

    def measure_first(self) -> None:
        """On held-out rows, before the first step."""
        self.evaluate()  # type: ignore[attr-defined]


def ids_only(
    trainer: type, lengths: list[int], stage: Training, ctx: Context, counts: Mapping[str, list[int]] | None = None
) -> type:
    """A trainer class, TRL's or one of ours, that takes rows of ids as they are, in our order.

    `counts`: for TRL's figures that are means over tokens, by name, the tokens of each row; `loss` if the loss is one.
    """
    score_labelled_positions_only()
    sharing = shared(trainer, lengths, stage, ctx, counts or {})

    class IdsOnly(*sharing, Checked, trainer):  # type: ignore[misc,valid-type]  # the base is only known when it runs
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            return EpochSampler(lengths, size, ctx.seed)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """The cards that TRL writes into checkpoints hold paths of this machine."""

    return IdsOnly


def shared(
    trainer: type, lengths: list[int], stage: Training, ctx: Context, counts: Mapping[str, list[int]]
) -> tuple[type, ...]:
    """What a trainer must do besides as one of several processes; for one alone mostly nothing.

    The trainer averages the micro-batches of a step as if all had as many rows, and TRL's mean over tokens beside the
    one over pairs as if all had as many tokens: wrong in an epoch's short last batch, and with that term in every one.
    """
    from tasks.parallel.sharing import SFT_TERM, SharedMeans, SharedSums
    from tasks.training.own_loss import OwnLoss

    processes, micro, ours = ctx.processes, stage.micro_batch(ctx.execution), issubclass(trainer, OwnLoss)
    cut = micro < stage.batch_size and not stage.keyed_micro_batch(ctx.execution)
    uneven = len(lengths) % stage.batch_size or SFT_TERM in counts
    if processes.count == 1 and (ours or not (cut and uneven)):
        return ()
    share = Share(lengths, stage.batch_size, micro, ctx.seed, rank=processes.rank, count=processes.count)
    kind = SharedSums if ours else SharedMeans
    return (type("ItsShare", (kind,), {"share": share, "processes": processes, "counts": counts}),)


def score_labelled_positions_only() -> None:
    """Let TRL's fused head skip positions without a label on the CPU too, where it would score every one.

    The result is the same; at 30 to 100 tokens a row it saves a third of a step. Without that private switch in
    a later TRL we would only be slower.
    """
    from trl.trainer import utils

    if hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: True


def fit(
    trainer: Any, stage: Training, ctx: Context, lengths: list[int], *, evaluate_before: bool = False
) -> dict[str, float]:
    """Train, from the newest complete checkpoint if there is one; gives the last value of each metric."""
    recorder = Recorder(ctx, stage, lengths)
    evaluates = evaluate_before and trainer.args.eval_strategy != "no"
    train_on(trainer, recorder, ctx, trainer.measure_first if evaluates else None)
    make_whole(trainer.model, ctx.processes)
    ctx.processes.leave_to_the_first()
    return recorder.headline()


def train_on(trainer: Any, recorder: StepRecorder, ctx: Context, before: Callable[[], Any] | None = None) -> None:
    """Train to the end, from the newest intact checkpoint if there is one, else after `before`.

    Raises NumberError, with the step and its rows, once a loss or a gradient is no number or nothing is learned.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder)
    checkpoint = ctx.processes.decided(lambda: newest_checkpoint(ctx.work, ctx.say, ctx.processes.sharding))
    if checkpoint is None:
        ctx.rewind(-1)
        if before is not None:
            before()
    else:
        step = int(checkpoint.name.rsplit("-", 1)[1])
        ctx.rewind(step)
        ctx.say(f"going on from {checkpoint.name}, after {step} of {trainer.args.max_steps} steps")
        if step >= trainer.args.max_steps:
            _take_up_the_end(trainer, recorder, checkpoint)
            return
    try:
        with ctx.stop.patience():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NumberError as error:
        step = int(trainer.state.global_step)
        rows = ", ".join(map(str, recorder.rows_at(step)))
        raise NumberError(
            f"{error} at step {step + 1}, on the rows {rows}; {last_good(ctx.work)}. Look at these rows; if nothing "
            "is wrong with them, lower learning_rate"
        ) from error


def _take_up_the_end(trainer: Any, recorder: StepRecorder, checkpoint: Path) -> None:
    """The state after the last step. (Resumed there amid an epoch, transformers' loop would take one step more.)"""
    from transformers import TrainerState
    from transformers.trainer import TRAINER_STATE_NAME

    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    recorder.take_up()


def require_finite(metrics: dict[str, float], stage: str) -> None:
    """Raise StageError if training ended with a loss that is no number."""
    loss = metrics.get("train/loss", 0.0)
    if not math.isfinite(loss):
        raise StageError(f"{stage}: the loss became {loss}; lower learning_rate or max_grad_norm")
