"""Runs as they lie under `$ALIGN_HOME`, made without training: record, facts, log, and the lock of a live process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.records import RunRecord
from flows.running.run_folder import RunFolder

LOCKED = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"


def stage(name: str, status: str = "ran", **more: Any) -> dict[str, Any]:
    """A line of a record; its key is its name in hexadecimal."""
    made = status in ("ran", "cached", "resumed")
    return {
        "name": name, "uses": name.partition("_")[0], "key": name.encode().hex().ljust(64, "0"), "status": status,
        "seconds": 60.0 if status == "ran" else 0.0, "path": f"/nowhere/{name}" if made else None, "digest": None,
        "metrics": {"cost/tokens": 1000.0} if made else {}, "error": None, "mlflow_run_id": f"id-of-{name}",
        "inputs": {}, **more,
    }  # fmt: skip


def keep_run(
    home: Path, run_id: str, stages: Sequence[Mapping[str, Any]], status: str = "FINISHED", *,
    hours: float = 3.2, log: str | None = None,
) -> RunRecord:  # fmt: skip
    """A run that began so many hours ago; `status` is its facts'."""
    flow_run = "00000000-0000-0000-0000-000000000001"
    record = RunRecord("pipelines/tiny.yaml", run_id, flow_run, f"id-of-{run_id}", [dict(one) for one in stages])
    record.save(home)
    run = RunFolder(home, run_id)
    run.folder.mkdir()
    began = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
    (run.folder / "facts.json").write_text(json.dumps({"status": status, "started": began}))
    if log is not None:
        run.log.write_text(log)
    return record


def live_process(home: Path, run_id: str) -> subprocess.Popen[bytes]:
    """A process that holds the run's lock, as that of a run does."""
    lock = RunFolder(home, run_id).folder / "lock"
    process = subprocess.Popen([sys.executable, "-c", LOCKED, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    return process
