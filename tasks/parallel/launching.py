"""From one process that was told to run a stage to several that do, under `accelerate launch`.

    python -m tasks job.json              this one: starts the next, waits, says how it ended
      accelerate launch ...               restarts nothing: ends all others once one has failed
        python -m tasks.parallel.member   one for each process: trains

Each member leaves in `work/processes/` its process id when it begins and its ending when it ends. Whoever loses its
parent is killed by the kernel, so that nobody is left when the first of them is.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from artifacts.errors import StageError, UserError
from tasks.ending import Ending, failed, interrupted
from tasks.job import Job
from tasks.parallel.settings import gpu_count, machine_problem

PR_SET_PDEATHSIG = 1
CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "accelerate"
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "NCCL", "gloo", "Broken pipe")
"""In what a library says to whoever still waits for a process that has died."""


def launched(job: Job, path: Path) -> Ending:
    """Run the job file at `path` in as many processes as it says, to the end of all."""
    launch = job.execution.launch
    if problem := machine_problem(launch, job.execution.device):
        return failed(UserError(f"execution.launch: {problem}"))
    folder = members(job.draft)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process = subprocess.Popen(_command(job, path), env=_environment(job), preexec_fn=die_with_parent)
    with _passed_on(process):
        process.wait()
    return _together([_ending_of(folder, rank) for rank in range(launch.processes)])


def members(draft: Path) -> Path:
    """Where the processes of a stage leave who they are and how they ended."""
    return draft / "work" / "processes"


def member_ids(draft: Path) -> list[int]:
    """The process ids of those that left no ending."""
    folder = members(draft)
    return [int(path.read_text()) for path in folder.glob("*.pid") if not path.with_suffix(".json").exists()]


def die_with_parent() -> None:
    """The kernel kills this process when its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _command(job: Job, path: Path) -> list[str]:
    launch = job.execution.launch
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{launch.mode}.yaml"),
        "--num_processes", str(launch.processes), "--num_machines", "1", "--main_process_port", "0",
        "--module", "tasks.parallel.member", str(path),
    ]  # fmt: skip


def _environment(job: Job) -> dict[str, str]:
    """Each process gets its part of the threads, since accelerate's launcher would otherwise give it one."""
    threads = job.execution.threads or len(os.sched_getaffinity(0))
    each = {"OMP_NUM_THREADS": str(max(1, threads // job.execution.launch.processes))}
    on_cpu = job.execution.device == "cpu" or not gpu_count()
    return {**os.environ, **each, "ACCELERATE_USE_CPU": str(on_cpu).lower(), "TORCHELASTIC_ERROR_FILE": os.devnull}


class _passed_on:  # noqa: N801  (reads as a word where it is used)
    """While it waits, this process hands on SIGTERM, and ends when the others have."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGTERM, self._hand_on)

    def __exit__(self, *problem: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _hand_on(self, number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


def _ending_of(folder: Path, rank: int) -> Ending | None:
    """None for a process that left none."""
    try:
        return Ending.model_validate_json((folder / f"{rank}.json").read_text())
    except (OSError, ValueError):
        return None


def _together(endings: Sequence[Ending | None]) -> Ending:
    """The ending of the stage: the first's if all went well, else the one that says most of what went wrong."""
    found = [one for one in endings if one is not None]
    if len(found) == len(endings) and not any(one.error for one in found):
        return _with_memory_of(found)
    wrong = sorted((one for one in found if one.error and not interrupted(one)), key=lambda one: (not one.ours, one.at))
    causes = [one for one in wrong if one.ours or not any(word in str(one.result["message"]) for word in LOST_PEER)]
    if causes:
        return causes[0]
    silent = [rank for rank, one in enumerate(endings) if one is None]
    stopped = [one for one in found if interrupted(one)]
    if stopped and not silent and not wrong:
        return stopped[0]
    who = f"process {silent[0] + 1} of {len(endings)} was killed" if silent else wrong[0].result["message"]
    return Ending(
        status=1, at=time.time(),
        result={"error": StageError.__name__, "message": f"{who}; run the same command again to go on"},
    )  # fmt: skip


def _with_memory_of(endings: Sequence[Ending]) -> Ending:
    """The first's ending, with the memory that all of them took."""
    peak = sum(one.result["metrics"]["cost/peak_memory_bytes"] for one in endings)
    result = {**endings[0].result, "metrics": {**endings[0].result["metrics"], "cost/peak_memory_bytes": peak}}
    return endings[0].model_copy(update={"result": result})
