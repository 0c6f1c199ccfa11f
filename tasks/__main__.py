"""`python -m tasks job.json`: run one stage, in this process, on whatever machine this is.

Exit status 0 when done, 2 for what the user must correct (one line, no traceback), 1 for anything else. How it ended
is left in `result.json` beside the draft's output.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from artifacts.errors import AlignError, UserError
from tasks.job import Job

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
        metrics = job.stage().run(job.context(events=os.environ.get("ALIGN_EVENTS") == "1"))
    except Exception as error:
        status = error.exit_status if isinstance(error, AlignError) else 1
        name = type(error).__name__
        message = str(error) if isinstance(error, AlignError) else f"{name}: {error}"
        result.write_text(json.dumps({"error": name, "message": message}))
        if not isinstance(error, UserError):
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        return status
    seconds = time.monotonic() - started
    result.write_text(json.dumps({"metrics": {**metrics, **_costs(seconds)}, "seconds": seconds}))
    return 0


def _quieten(job: Job) -> None:
    """No hub look-ups but where a source is on the hub, and no warnings that a user can't act on."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not any(str(value).startswith("hub:") for value in job.settings.values()):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.simplefilter("ignore", category)


def _costs(seconds: float) -> dict[str, float]:
    """What every stage reports of itself: wall seconds, peak memory of this process in bytes."""
    import resource

    return {
        "cost/seconds": seconds,
        "cost/peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
