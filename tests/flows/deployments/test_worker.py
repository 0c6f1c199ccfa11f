"""A worker that is asked to end lets its flow runs save. What stands for Prefect's here kills them at once, as that."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUN = """
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(0.5)
    Path(sys.argv[1], "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "at work").touch()
time.sleep(20)
"""
WORKER = f"""
import signal, subprocess, sys, time
run = subprocess.Popen([sys.executable, "-c", {RUN!r}, sys.argv[1]], start_new_session=True)
def end(*_):
    run.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(0.1)
"""
SUPERVISED = "import sys; from flows.deployments.worker import supervise; sys.exit(supervise(sys.argv[1:]))"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-c", SUPERVISED, sys.executable, "-c", WORKER, str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (tmp_path / "at work").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_end_it_lets_its_flow_runs_save_first(worker, tmp_path: Path, number) -> None:
    worker.send_signal(number)
    assert worker.wait(20) == 0
    assert (tmp_path / "saved").exists()


def test_a_worker_that_ends_by_itself_gives_its_status() -> None:
    words = [sys.executable, "-c", SUPERVISED, sys.executable, "-c", "import sys; sys.exit(3)"]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == 3


def test_killed_it_takes_the_worker_with_it(worker) -> None:
    (child,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 10
    while Path("/proc", child).exists() and " Z " not in Path("/proc", child, "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
