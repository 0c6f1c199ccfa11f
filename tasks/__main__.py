"""`python -m tasks job.json`: run one stage, in this process, on whatever machine this is.

Exit status 0 when done, 2 for what the user must correct (one line, no traceback), 130 when it was asked to end by
SIGTERM (it saves first, if it can), 1 for anything else. How it ended is left in `result.json` beside the draft's
output.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

from artifacts.errors import (
    AlignError,
    StageError,
    ran_out_of_memory,
)
from tasks.job import Job
from tasks.training.checkpoints import disk_is_full, last_good

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def main(argv: list[str]) -> int:
    """Run the job file named in `argv`."""
    if len(argv) != 1:
        print("usage: python -m tasks job.json", file=sys.stderr)  # noqa: T201
        return 2
    job = Job.model_validate_json(Path(argv[0]).read_text())
    _quieten(job)
    if job.execution.threads:  # read by OpenMP when torch is imported
        os.environ["OMP_NUM_THREADS"] = str(job.execution.threads)
    # Threads that spin while they wait hold each other up, many times over, where two processes share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    result = job.draft / "result.json"
    result.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        context = job.context(events=os.environ.get("ALIGN_EVENTS") == "1")
        context.stop.listen()
        metrics = job.stage().run(context)
    except Exception as error:
        known = _known(error, job)
        status = known.exit_status if isinstance(known, AlignError) else 1
        name = type(known).__name__
        message = str(known) if isinstance(known, AlignError) else f"{name}: {known}"
        if not isinstance(known, AlignError) or (isinstance(known, StageError) and known.__cause__):
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        with suppress(OSError):  # on a full disk the line above has to do
            result.write_text(json.dumps({"error": name, "message": message}))
        return status
    seconds = time.monotonic() - started
    result.write_text(json.dumps({"metrics": {**metrics, **_costs(seconds)}, "seconds": seconds}))
    return 0


def _known(error: Exception, job: Job) -> Exception:
    """What libraries raise when memory or the disk runs out, as an error of ours; anything else as it is."""
    if ran_out_of_memory(error):
        return job.out_of_memory("out of memory", _peak_memory())
    if not isinstance(error, AlignError) and disk_is_full(error, job.draft):
        return StageError(
            f"the disk is full at {job.draft} ({type(error).__name__}); {last_good(job.draft / 'work')}. Make room "
            "and run the same command again"
        )
    return error


def _peak_memory() -> int:
    """Bytes: of the GPU, if one was used, else of this process."""
    import resource

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _quieten(job: Job) -> None:
    """No hub look-ups but where a source is on the hub, and no warnings that a user can't act on."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not any(str(value).startswith("hub:") for value in job.settings.values()):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.simplefilter("ignore", category)
    # Says at its import that kernels of another package are not there, on CPUs with bfloat16 instructions.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _costs(seconds: float) -> dict[str, float]:
    """What every stage reports of itself: wall seconds, peak memory in bytes."""
    return {"cost/seconds": seconds, "cost/peak_memory_bytes": float(_peak_memory())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
