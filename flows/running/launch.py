"""A stage in a process of its own: memory is freed after it, and a crash takes the stage and not the flow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifacts.errors import InterruptedStage, OutOfMemoryError, StageError, revive
from flows.running.oom import KernelWitness
from flows.running.watch import Watcher
from flows.seconds import seconds
from flows.tracking.system_metrics import sampled
from tasks.context import EVENT
from tasks.job import Job
from tasks.parallel.launching import die_with_parent, member_ids

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""For glibc: don't give large tensors back to the system only to ask for them again at the next layer."""
GRACE, GRACE_S = "ALIGN_SAVE_GRACE", 10.0
"""How many seconds a trainer that is asked to end may take to save: whoever presses Ctrl-C waits for it."""
ROOT = Path(__file__).resolve().parents[2]
RUNNING: set[int] = set()
"""The trainers of this process, by the number of their process group."""
ENDING = threading.Event()
"""Set once they are asked to end: nobody starts another, or waits to."""


def launch(
    job: Job, label: str, watcher: Watcher, locks: Sequence[int], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run a job to its end and give its `result.json`; raises what the stage raised.

    The child inherits the locks' descriptors, dies with this process (in fact with the thread that calls, which the
    kernel's signal follows), and is ended with all its own children on any way out of here.
    """
    go_on()
    grace_s = seconds(GRACE, GRACE_S)
    job.draft.mkdir(parents=True, exist_ok=True)
    path = job.draft / "job.json"
    path.write_text(job.model_dump_json(indent=1))
    witness, said = KernelWitness(), ""
    with (job.draft / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", cwd=ROOT, start_new_session=True, pass_fds=locks, preexec_fn=die_with_parent,
            env={**KEEP_MEMORY, **os.environ, **environment, "ALIGN_EVENTS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        RUNNING.add(process.pid)
        if ENDING.is_set():  # those who ask may have looked just before, and look no more
            _signal(process.pid, signal.SIGTERM)
        try:
            assert process.stdout is not None
            with sampled(process.pid, job.draft, job.execution.monitor_interval):
                for line in process.stdout:
                    _pump(line.rstrip("\n"), label, watcher, log)
                    said = line.removeprefix("error: ").strip() if line.startswith("error: ") else said
            _, waited, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(waited)
        except BaseException:  # interrupted or cancelled: it may still save
            _ask(process, grace_s)
            raise
        finally:
            RUNNING.discard(process.pid)
            _end(process)
    killed = [process.pid] if process.returncode == -signal.SIGKILL else member_ids(job.draft)
    if process.returncode and any(map(witness.killed_for_memory, killed)):
        error = job.out_of_memory("killed for memory by the kernel", usage.ru_maxrss * 1024)
        raise OutOfMemoryError(f"{label}: {error}")
    return _result(job, label, process.returncode, said)


def go_on() -> None:
    """Raise InterruptedStage if the trainers of this process were asked to end."""
    if ENDING.is_set():
        raise InterruptedStage("ended as asked, before it trained; run the same command again to go on")


def end_trainers(grace_s: float | None = None) -> None:
    """Ask all that run to end, and kill those that take too long; whoever waits for them hears it from them."""
    ENDING.set()
    deadline, asked = time.monotonic() + (seconds(GRACE, GRACE_S) if grace_s is None else grace_s), set[int]()
    while RUNNING and time.monotonic() < deadline:
        for group in RUNNING - asked:  # one may only just have begun
            _signal(group, signal.SIGTERM)
            asked.add(group)
        time.sleep(0.05)
    for group in list(RUNNING):
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _pump(line: str, label: str, watcher: Watcher, log: Any) -> None:
    text, event = _parted(line)
    if event is not None:
        watcher.progress(label, event["done"], event["total"], event["unit"], event["figures"])
        if not text:
            return
    log.write(text + "\n")
    log.flush()
    if text.strip():
        watcher.line(label, text)


def _parted(line: str) -> tuple[str, dict[str, Any] | None]:
    """A line's text, and the event at its end; one into which somebody else has written meanwhile is text too."""
    text, _, rest = line.partition(EVENT)
    try:
        event = json.loads(rest) if rest else None
    except ValueError:
        event = None
    if isinstance(event, dict) and event.keys() >= {"done", "total", "unit", "figures"}:
        return text, event
    return text + rest, None


def _ask(process: subprocess.Popen[str], grace_s: float) -> None:
    """Ask the trainer to end, and give it some time for that; a second Ctrl-C takes the time away."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=grace_s)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of the process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _result(job: Job, label: str, status: int, said: str) -> dict[str, Any]:
    """What the trainer left; `said` is its last line of error, all there is where the disk was full."""
    path = job.draft / "result.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "error" in found:
        raise revive(found["error"], f"{label}: {found['message']}")
    if status != 0:
        if said:
            raise StageError(f"{label}: {said}")
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise StageError(
            f"{label}: its process {how}; run the same command again to go on. Its output is in {job.draft / 'log.txt'}"
        )
    return found
