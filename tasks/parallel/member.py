"""`python -m tasks.parallel.member job.json`: one of the processes of a stage, as `accelerate launch` starts it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from artifacts.errors import UserError
from artifacts.syncing import write_whole
from tasks.__main__ import quieten
from tasks.ending import ending
from tasks.job import Job
from tasks.parallel.launching import die_with_parent, members
from tasks.parallel.processes import LeaveToTheFirst, Several


def main(argv: list[str]) -> int:
    """Run this process's part of the job file named in `argv`."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:  # it was gone before the kernel was told
        return 1
    job = Job.model_validate_json(Path(argv[0]).read_text())
    quieten(job)
    rank, folder = int(os.environ["RANK"]), members(job.draft)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    ended = ending(job, lambda: work(job))
    with suppress(OSError):  # on a full disk the line below has to do
        write_whole(folder / f"{rank}.json", ended.model_dump_json())
    if ended.error and ended.ours:
        print(f"error: {ended.result['message']}", file=sys.stderr, flush=True)  # noqa: T201
    return ended.status


def work(job: Job) -> dict[str, float]:
    """The stage's figures in the first process, none in the others."""
    device = job.execution.device
    import torch

    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: wanted a GPU for cuda, and this machine has none")
    processes = Several(job.execution.launch.mode, cpu=cpu)
    context = job.context(events=os.environ.get("ALIGN_EVENTS") == "1", processes=processes)
    context.stop.listen()
    try:
        return job.run(context)
    except LeaveToTheFirst:
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
