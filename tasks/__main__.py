"""`python -m tasks job.json`: run one stage, in this process or in those that it starts, on whatever machine this is.

Exit status 0 when done, 2 for what the user must correct (one line, no traceback), 130 when it was asked to end by
SIGTERM (it saves first, if it can), 1 for anything else. How it ended is left in `result.json` beside the draft's
output.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

from tasks.ending import Ending, ending
from tasks.job import Job
from tasks.parallel.launching import launched

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
    path = Path(argv[0])
    job = Job.model_validate_json(path.read_text())
    quieten(job)
    result = job.draft / "result.json"
    result.unlink(missing_ok=True)
    ended = launched(job, path) if job.in_several() else _here(job)
    if ended.error:
        print(f"error: {ended.result['message']}", file=sys.stderr)  # noqa: T201
    try:
        result.write_text(json.dumps(ended.result))
    except OSError:
        if not ended.error:  # on a full disk the line above has to do
            raise
    return ended.status


def _here(job: Job) -> Ending:
    """In this process."""
    if job.execution.threads:  # read by OpenMP when torch is imported
        os.environ["OMP_NUM_THREADS"] = str(job.execution.threads)

    def work() -> dict[str, float]:
        context = job.context(events=os.environ.get("ALIGN_EVENTS") == "1")
        context.stop.listen()
        return job.run(context)

    return ending(job, work)


def quieten(job: Job) -> None:
    """No hub look-ups but where a source is on the hub, no warnings that a user can't act on, no threads that spin."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not any(str(value).startswith("hub:") for value in job.settings.values()):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Threads that spin while they wait hold each other up, many times over, where two processes share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.simplefilter("ignore", category)
    # Says at its import that kernels of another package are not there, on CPUs with bfloat16 instructions.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
