"""A trainer's log, in our metric names, on the axis of samples seen."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from artifacts.errors import InterruptedStage, NumberError
from artifacts.jsonl import read_jsonl
from tasks.context import Context
from tasks.parallel.consolidating import gradients
from tasks.settings import Training
from tasks.training.checkpoints import SHARDING, publish, require_space
from tasks.training.rows import epoch_order, load_rows

NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "entropy": "train/entropy",
    "mean_token_accuracy": "train/token_accuracy",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
}
COPIES_IN_CHECKPOINT = 4
"""What trains is saved with its two moments; and a frozen copy that TRL keeps beside it."""
KEPT = ("rewards/", "logps/")
"""TRL's names that are ours too."""


def renamed(name: str) -> str | None:
    """TRL's metric name in ours; None for what is not worth keeping."""
    if name.startswith("eval_"):
        inner = renamed(name.removeprefix("eval_"))
        return None if inner is None else f"validation/{inner.removeprefix('train/')}"
    return name if name.startswith(KEPT) else NAMES.get(name)


def cumulative_tokens(lengths: list[int], batch_size: int, seed: int, steps: int) -> list[int]:
    """Tokens seen after each optimizer step, from 0 on: exact after a resume too."""
    seen, epoch = [0], 0
    while len(seen) <= steps:
        order = epoch_order(lengths, batch_size, seed, epoch)
        for at in range(0, len(order), batch_size):
            seen.append(seen[-1] + sum(lengths[i] for i in order[at : at + batch_size]))
        epoch += 1
    return seen[: steps + 1]


def saveable(ctx: Context, multiple: int) -> int:
    """A checkpoint may stand at every so many steps: at a `multiple`, and where a point of the metrics is written,
    since what the next point averages is kept in memory alone."""
    return math.lcm(multiple, ctx.execution.log_interval)


class StepRecorder(TrainerCallback):
    """Writes points to `metrics.jsonl`, reports progress, publishes checkpoints, and looks at the gradient."""

    saves_at = 1
    """Steps that belong together: no checkpoint may stand between them."""
    must_learn_at_once = True
    """Whether a loss or a gradient that is exactly 0 at the first step can only be a mistake."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.last: dict[str, float] = {}
        self.before: dict[str, float] = {}
        self._since = (0, time.monotonic())
        self.stops = False

    def renamed(self, name: str) -> str | None:
        """TRL's metric name in ours; None for what is not worth keeping."""
        return renamed(name)

    def samples(self, state: Any) -> int:
        """Samples seen so far."""
        raise NotImplementedError

    def tokens_seen(self, state: Any) -> int:
        """Tokens seen so far: exact after a resume too."""
        raise NotImplementedError

    def rows_at(self, step: int) -> list[int]:
        """The numbers of the data rows that optimizer step `step`, counted from 0, learns from."""
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = (self.tokens_seen(state), time.monotonic())
        self.take_up()

    def take_up(self) -> None:
        """What was logged before a crash, so that a resumed run ends with the figures of an undisturbed one."""
        for point in self.points():
            self.last.update(point["metrics"])
            if point["optimizer_step"] == 0:
                self.before.update(point["metrics"])

    def points(self) -> list[dict[str, Any]]:
        """What has been logged so far."""
        path = self.ctx.metrics.path
        return read_jsonl(path) if path.exists() else []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        named = {self.renamed(name): float(value) for name, value in (logs or {}).items() if value is not None}
        metrics = {name: value for name, value in named.items() if name is not None}
        if not metrics:
            return
        if "train/loss" in metrics:
            metrics["train/tokens_per_second"] = self._speed(self.tokens_seen(state))
        if self.must_learn_at_once and metrics.get("train/loss") == 0.0 and "train/loss" not in self.last:
            raise NumberError("the loss was exactly 0 from the start, so that nothing could be learned,")
        self.log(metrics, state)
        if state.global_step == 0:
            self.before.update(metrics)
        self.last.update(metrics)

    def log(self, metrics: dict[str, float], state: Any) -> None:
        """Write one point."""
        self.ctx.metrics.log(metrics, step=self.samples(state), optimizer_step=state.global_step)

    def _speed(self, tokens: int) -> float:
        """Tokens a second since the last point."""
        then, at = self._since
        now = time.monotonic()
        self._since = (tokens, now)
        return (tokens - then) / max(now - at, 1e-9)

    def shown(self) -> dict[str, float]:
        """The figures beside the progress, NaN for those not known yet."""
        return {"loss": self.last.get("train/loss", float("nan"))}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = gradients(kwargs["model"], kwargs["optimizer"])
        if not all(bool(gradient.isfinite().all()) for gradient in found):
            raise NumberError("the gradient became infinite or no number")
        if state.global_step or not self.must_learn_at_once:
            return
        if not self.ctx.processes.any(any(bool(gradient.any()) for gradient in found)):
            raise NumberError("the gradient was exactly 0, so that nothing could be learned,")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        shown = {**self.shown(), "tokens/s": self.last.get("train/tokens_per_second", float("nan"))}
        figures = {name: value for name, value in shown.items() if value == value}
        self.ctx.progress(state.global_step, state.max_steps, "steps", **figures)
        self.stops = self.ctx.processes.any(self.ctx.stop.asked)  # all of them, at the same step
        late = self.ctx.processes.any(self.ctx.save_clock.due())
        if (self.stops or late) and state.global_step % saveable(self.ctx, self.saves_at) == 0:
            control.should_save = True
        if self.ctx.processes.sharding and state.global_step >= state.max_steps:
            control.should_save = False  # its parts could only be brought together by training on, and that is over
        if control.should_save:
            trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
            require_space(self.ctx.work, COPIES_IN_CHECKPOINT * trained)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        aside = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.ctx.processes.done_by_the_first(lambda: self._publish(aside))
        self.ctx.save_clock.saved()
        if self.stops and state.global_step < state.max_steps:
            raise InterruptedStage(f"ended as asked, after {aside.name}; run the same command again to go on")

    def _publish(self, aside: Path) -> None:
        if self.ctx.processes.sharding:
            (aside / SHARDING).write_text(self.ctx.processes.sharding)
        publish(aside, self.ctx.work, self.ctx.execution.keep_checkpoints)


class Recorder(StepRecorder):
    """For trainers that go through rows whose lengths are known beforehand."""

    def __init__(self, ctx: Context, stage: Training, lengths: list[int]) -> None:
        super().__init__(ctx)
        self.stage, self.lengths = stage, lengths
        self.tokens = cumulative_tokens(lengths, stage.batch_size, ctx.seed, stage.steps(len(lengths)))

    def samples(self, state: Any) -> int:
        return int(state.global_step) * self.stage.batch_size

    def tokens_seen(self, state: Any) -> int:
        return self.tokens[state.global_step]

    def rows_at(self, step: int) -> list[int]:
        size = self.stage.batch_size
        epoch, batch = divmod(step, -(-len(self.lengths) // size))
        order = epoch_order(self.lengths, size, self.ctx.seed, epoch)[batch * size :][:size]
        rows = load_rows(self.stage.dataset(), "train")
        return [rows[i]["row"] for i in order]

    def headline(self) -> dict[str, float]:
        """The last value of every metric, the validation loss before the first step, and the tokens trained on."""
        found = {name: value for name, value in self.last.items() if name != "train/tokens_per_second"}
        if "validation/loss" in self.before:
            found["validation/loss_before"] = self.before["validation/loss"]
        return {**found, "cost/tokens": float(self.tokens[-1])}
