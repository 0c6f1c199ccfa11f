"""A stage in a process of its own: memory is freed after it, and a crash takes the stage and not the flow."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifacts.errors import StageError, revive
from flows.watch import Watcher
from tasks.context import EVENT
from tasks.job import Job

PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).resolve().parent.parent


def launch(job: Job, label: str, lock: int, watcher: Watcher) -> dict[str, Any]:
    """Run a job to its end and give its `result.json`; raises what the stage raised.

    The child inherits the lock's descriptor, dies with this process (which must call from its main thread, since the
    kernel's signal follows the thread), and is ended with all its own children on any way out of here.
    """
    job.draft.mkdir(parents=True, exist_ok=True)
    path = job.draft / "job.json"
    path.write_text(job.model_dump_json(indent=1))
    with (job.draft / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", cwd=ROOT, env={**os.environ, "ALIGN_EVENTS": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True, pass_fds=(lock,), preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                _pump(line.rstrip("\n"), label, watcher, log)
            status = process.wait()
        finally:
            _end(process)
    return _result(job, label, status)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _pump(line: str, label: str, watcher: Watcher, log: Any) -> None:
    if line.startswith(EVENT):
        event = json.loads(line.removeprefix(EVENT))
        watcher.progress(label, event["done"], event["total"], event["unit"], event["figures"])
        return
    log.write(line + "\n")
    log.flush()
    if line.strip():
        watcher.line(label, line)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of the process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _result(job: Job, label: str, status: int) -> dict[str, Any]:
    path = job.draft / "result.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "error" in found:
        raise revive(found["error"], f"{label}: {found['message']}")
    if status != 0:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise StageError(
            f"{label}: its process {how}; run the same command again to go on. Its output is in {job.draft / 'log.txt'}"
        )
    return found
