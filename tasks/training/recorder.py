"""A trainer's log, in our metric names, on the axis of samples seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tasks.context import Context
from tasks.settings import Training
from tasks.training.checkpoints import seal_checkpoint
from tasks.training.rows import epoch_order

NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "entropy": "train/entropy",
    "mean_token_accuracy": "train/token_accuracy",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
}
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


class StepRecorder(TrainerCallback):
    """Writes points to `metrics.jsonl`, reports progress, and seals checkpoints."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.last: dict[str, float] = {}
        self.before: dict[str, float] = {}
        self._since = (0, time.monotonic())

    def renamed(self, name: str) -> str | None:
        """TRL's metric name in ours; None for what is not worth keeping."""
        return renamed(name)

    def samples(self, state: Any) -> int:
        """Samples seen so far."""
        raise NotImplementedError

    def tokens_seen(self, state: Any) -> int:
        """Tokens seen so far: exact after a resume too."""
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = (self.tokens_seen(state), time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        named = {self.renamed(name): float(value) for name, value in (logs or {}).items() if value is not None}
        metrics = {name: value for name, value in named.items() if name is not None}
        if not metrics:
            return
        if "train/loss" in metrics:
            metrics["train/tokens_per_second"] = self._speed(self.tokens_seen(state))
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

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shown = {**self.shown(), "tokens/s": self.last.get("train/tokens_per_second", float("nan"))}
        figures = {name: value for name, value in shown.items() if value == value}
        self.ctx.progress(state.global_step, state.max_steps, "steps", **figures)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal_checkpoint(checkpoint, self.ctx.execution.keep_checkpoints)


class Recorder(StepRecorder):
    """For trainers that go through rows whose lengths are known beforehand."""

    def __init__(self, ctx: Context, stage: Training, lengths: list[int]) -> None:
        super().__init__(ctx)
        self.stage = stage
        self.tokens = cumulative_tokens(lengths, stage.batch_size, ctx.seed, stage.steps(len(lengths)))

    def samples(self, state: Any) -> int:
        return int(state.global_step) * self.stage.batch_size

    def tokens_seen(self, state: Any) -> int:
        return self.tokens[state.global_step]

    def headline(self) -> dict[str, float]:
        """The last value of every metric, the validation loss before the first step, and the tokens trained on."""
        found = {name: value for name, value in self.last.items() if name != "train/tokens_per_second"}
        if "validation/loss" in self.before:
            found["validation/loss_before"] = self.before["validation/loss"]
        return {**found, "cost/tokens": float(self.tokens[-1])}
