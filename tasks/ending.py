"""How a stage's process ends: its figures, or what is said of its failure, and the exit status that goes with it."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from artifacts.errors import AlignError, InterruptedStage, StageError, ran_out_of_memory
from tasks.job import Job
from tasks.training.checkpoints import disk_is_full, last_good


class Ending(BaseModel):
    """What goes into `result.json`, and what does not."""

    status: int
    """0 done, 2 for what the user must correct, 130 when it was asked to end, 1 for anything else."""
    result: dict[str, Any]
    """Of what is done `metrics` and `seconds`, else `error`, a class of ours or a library's, and `message`."""
    ours: bool = True
    """Whether an error is one of ours, which says where it comes from by itself."""
    at: float = 0.0
    """When, in seconds since the epoch."""

    @property
    def error(self) -> str | None:
        """The name of what went wrong."""
        return self.result.get("error")


def ending(job: Job, work: Callable[[], dict[str, float]]) -> Ending:
    """Do the work; whatever it raises is printed where it helps, and told."""
    started = time.monotonic()
    try:
        metrics = work()
    except Exception as error:  # whatever it is: nobody but this process can say how its stage ended
        return failed(_known(error, job))
    seconds = time.monotonic() - started
    costs = {"cost/seconds": seconds, "cost/peak_memory_bytes": float(peak_memory())}
    return Ending(status=0, result={"metrics": {**metrics, **costs}, "seconds": seconds}, at=time.time())


def failed(error: Exception) -> Ending:
    """The ending that an error is."""
    ours = isinstance(error, AlignError)
    name = type(error).__name__
    if not isinstance(error, AlignError) or (isinstance(error, StageError) and error.__cause__):
        traceback.print_exception(error)
    message = str(error) if ours else f"{name}: {error}"
    status = error.exit_status if isinstance(error, AlignError) else 1
    return Ending(status=status, result={"error": name, "message": message}, ours=ours, at=time.time())


def interrupted(ended: Ending) -> bool:
    """Whether nothing went wrong, but someone asked for the end."""
    return ended.error == InterruptedStage.__name__


def _known(error: Exception, job: Job) -> Exception:
    """What libraries raise when memory or the disk runs out, as an error of ours; anything else as it is."""
    if ran_out_of_memory(error):
        return job.out_of_memory("out of memory", peak_memory())
    if not isinstance(error, AlignError) and disk_is_full(error, job.draft):
        return StageError(
            f"the disk is full at {job.draft} ({type(error).__name__}); {last_good(job.draft / 'work')}. Make room "
            "and run the same command again"
        )
    return error


def peak_memory() -> int:
    """Bytes: of the GPU, if anything was put there, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and (allocated := torch.cuda.max_memory_allocated()):
        return int(allocated)
    return _resident()


def _resident() -> int:
    """The most that this process had in main memory; what the system keeps for `getrusage` may be its parent's."""
    import resource

    try:
        if kept := re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(kept[1]) * 1024
    except OSError:  # not Linux
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
