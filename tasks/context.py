"""Where and how a stage runs: everything that must not change its result.

A stage's fields are its identity and are hashed; what stands here is execution and never is. (The micro-batch is the
one exception, for stages that say that it changes what they compute.)
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts.errors import InterruptedStage
from tasks.parallel.processes import ALONE, Processes
from tasks.parallel.settings import Launch

EVENT = "\x1e"
"""Marks a line of a trainer's output as a progress event for the process that started it."""


class Execution(BaseModel):
    """The recipe's `execution:` block, or `--exec name=value`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; `auto` takes a GPU if there is one."""
    slot: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,60}$")
    """A name: of all stages on this machine that compute and have the same, one runs at a time. With GPUs each of them
    is such a slot anyway."""
    threads: int | None = Field(None, ge=1)
    """CPU threads, of all processes of a stage together; by default one a core. Equal bytes are promised for an equal
    number of threads."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows in one forward pass of a process; must divide its share of a batch, but for PPO. Smaller needs less
    memory."""
    launch: Launch = Launch()
    """Several processes for each training stage: `{processes: 2, mode: ddp}`."""
    checkpointing: bool = False
    """Keep of a forward pass only what goes from layer to layer, and compute the rest again in the backward pass: the
    same numbers in far less memory, a third slower."""
    log_interval: int = Field(1, ge=1)
    """Optimizer steps between two points of the training metrics."""
    monitor_interval: float = Field(10.0, ge=0)
    """Seconds between two samples of what a stage takes of CPU, memory and GPU; 0 takes none."""
    save_interval: int = Field(25, ge=1)
    """Optimizer steps between two checkpoints."""
    save_minutes: float = Field(5.0, gt=0)
    """Where steps take long, a checkpoint is also written at the first step's end so long after the last one."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on the disk while a stage trains."""
    requests: int = Field(4, ge=1)
    """Questions that a judge's endpoint is asked at the same time."""
    retries: int = Field(0, ge=0)
    """How often a stage that ran out of memory goes on by itself from its last checkpoint, each time with half the
    micro-batch: the same mathematics, but no longer the same bytes, which its manifest then says."""


class StepLog:
    """One JSON object a line, appended as it happens, so that any follower misses nothing.

    Each is `{"step": samples seen, "optimizer_step": n, "time": seconds since the epoch, <field>: ...}`.
    """

    field = "sample"

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, content: Mapping[str, Any], *, step: int, optimizer_step: int) -> None:
        """Append one line; `step` counts samples, so that methods with other batch sizes line up."""
        line = json.dumps(
            {"step": step, "optimizer_step": optimizer_step, "time": time.time(), self.field: dict(content)}
        )
        with self.path.open("a") as file:
            file.write(line + "\n")

    def rewind(self, optimizer_step: int) -> None:
        """Drop the lines after the checkpoint from which training goes on, so that none is there twice."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().split("\n"):
            try:
                point = json.loads(line)
            except ValueError:  # the process died inside this line
                continue
            if point["optimizer_step"] <= optimizer_step:
                kept.append(line + "\n")
        aside = self.path.with_suffix(".part")
        aside.write_text("".join(kept))
        aside.replace(self.path)


class MetricsLog(StepLog):
    """`metrics.jsonl`: the training metrics, numbers by name."""

    field = "metrics"


class Progress:
    """Tells whoever watches how far a stage is: as events to the parent, or as a line on a terminal."""

    def __init__(self, *, events: bool, shown: bool = True) -> None:
        self.events, self.shown = events, shown
        self._shown = 0.0

    def __call__(self, done: int, total: int, unit: str, **figures: float) -> None:
        """`done` of `total` units, with whatever figures are worth seeing beside them."""
        if not self.shown:
            return
        if self.events:
            event = {"done": done, "total": total, "unit": unit, "figures": figures}
            sys.stdout.write(EVENT + json.dumps(event) + "\n")  # one write: unbuffered, `print` would make two of it
            sys.stdout.flush()
        elif sys.stderr.isatty() and (done >= total or time.monotonic() - self._shown > 0.2):
            self._shown = time.monotonic()
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            end = "\n" if done >= total else ""
            print(f"\r{done}/{total} {unit}  {shown}\033[K", end=end, file=sys.stderr, flush=True)  # noqa: T201


class StopRequest:
    """Whether someone has asked the stage to end: SIGTERM, which comes before SIGKILL where there is time.

    A stage ends at once, but for one that is `patient`: that one looks here where it can save, and ends itself.
    """

    def __init__(self) -> None:
        self.asked = False
        self.patient = False

    def listen(self) -> None:
        """From now on SIGTERM is such a request."""
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.asked = True
        if not self.patient:
            raise InterruptedStage("ended as asked; run the same command again to go on")

    @contextmanager
    def patience(self) -> Iterator[None]:
        """In this block the stage ends itself, once it has saved."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False


class SaveClock:
    """Whether the last checkpoint is so old that it is time for another, whatever the steps say."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self._saved = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved > self.seconds

    def saved(self) -> None:
        """One was written."""
        self._saved = time.monotonic()


@dataclass(frozen=True)
class Context:
    """What a stage is given beside its fields."""

    out: Path
    """The output: the only files that the digest covers."""
    work: Path
    """Checkpoints and scratch; survives a crash, gone after success."""
    metrics: MetricsLog
    progress: Progress
    seed: int
    """Derived from the recipe's seed and the stage's `uses`."""
    execution: Execution
    stop: StopRequest = field(default_factory=StopRequest)
    processes: Processes = ALONE
    """Those that work on this stage; what is logged and written by any but the first goes nowhere."""

    @cached_property
    def save_clock(self) -> SaveClock:
        """Runs from when the stage first looks at it."""
        return SaveClock(self.execution.save_minutes)

    @property
    def samples(self) -> StepLog:
        """`samples.jsonl`, beside the metrics: what the policy wrote while it trained."""
        return StepLog(self.metrics.path.with_name("samples.jsonl"))

    def rewind(self, optimizer_step: int) -> None:
        """Forget what was logged after the checkpoint from which training goes on; -1 forgets all."""
        self.metrics.rewind(optimizer_step)
        self.samples.rewind(optimizer_step)

    def say(self, message: str) -> None:
        """One line for the log."""
        if self.processes.first:
            print(message, flush=True)  # noqa: T201

    def device(self) -> str:
        """`cuda` or `cpu`, with `auto` resolved."""
        import torch

        if self.execution.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.execution.device
