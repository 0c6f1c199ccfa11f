"""`execution: {launch: {processes: 2, mode: ddp}}`, and what of it this machine or a stage can't do. No torch here."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["ddp", "fsdp", "deepspeed"]
Modes = tuple[Mode, ...]
WHOLE: Modes = ("ddp",)
"""Each process has the whole model."""
SHARDED: Modes = ("fsdp", "deepspeed")
"""Each process has its part of the weights, of their gradients and of their moments."""
SPLIT_CHANGES_IT = (
    "wanted execution.launch.processes 1, since dropout and losses across pairs hang on which rows go through the "
    "model together: in several processes it would be another result under the same key"
)
DEVICES = Path("/dev")


class Launch(BaseModel):
    """How many processes a training stage takes, and what each of them holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    processes: int = Field(1, ge=1)
    """Each takes its share of a step's rows; with GPUs, one each. Stages that do not train run in one."""
    mode: Mode = "ddp"
    """`ddp`: each process has the whole model. `fsdp`, `deepspeed`: each has a part of it."""

    @property
    def several(self) -> bool:
        """Whether there is anything to divide."""
        return self.processes > 1


def machine_problem(launch: Launch, device: str) -> str | None:
    """Why this machine can't start these processes, or None; `device` is what the execution says."""
    if not launch.several:
        return None
    gpus = 0 if device == "cpu" else gpu_count()
    most, what = (gpus, "GPUs") if gpus else (len(os.sched_getaffinity(0)), "CPU cores")
    if launch.processes > most:
        return f"wanted at most {most} processes, since this machine has {most} {what}, got {launch.processes}"
    if launch.mode == "deepspeed" and find_spec("deepspeed") is None:
        return "mode deepspeed wants deepspeed, which is not installed here; `pip install deepspeed`, or take mode fsdp"
    return None


def gpu_count() -> int:
    """The GPUs that this process may use, without asking a driver for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = sum(path.name.removeprefix("nvidia").isdecimal() for path in DEVICES.glob("nvidia[0-9]*"))
    if visible is None:
        return there
    named = [one for one in visible.split(",") if one.strip() not in ("", "-1")]
    return min(there, len(named))


def mode_problem(modes: Modes, launch: Launch) -> str | None:
    """Why a stage that can do `modes` can't do this one, or None."""
    if not launch.several or launch.mode in modes:
        return None
    if not modes:
        return f"wanted execution.launch.processes 1, since it runs in one process only, got {launch.processes}"
    return f"wanted execution.launch.mode {' or '.join(modes)}, got {launch.mode}"


def rows_problem(batch_size: int, micro_batch: int | None, processes: int) -> str | None:
    """Why a step's rows can't be divided so, or None: every process takes as many rows at a time."""
    if batch_size % processes:
        return f"wanted execution.launch.processes to divide batch_size {batch_size}, got {processes}"
    if micro_batch is None or (batch_size // processes) % micro_batch == 0:
        return None
    return (
        f"wanted execution.micro_batch to divide the {batch_size // processes} rows that each of {processes} "
        f"processes has of batch_size {batch_size}, got {micro_batch}"
    )
