"""What is ours is told from what is not, however pids are given again; and ended to the last child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from flows.servers.processes import MARK, Started, children, end_marked, marked, tell

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, time
subprocess.Popen({SLEEPS!r}, start_new_session=True)
print("on", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []

    def start(code: str | None = None, mark: str = "") -> subprocess.Popen[str]:
        command = SLEEPS if code is None else [sys.executable, "-c", code]
        process = subprocess.Popen(command, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, text=True)
        made.append(process)
        if code is not None:
            assert process.stdout is not None and process.stdout.readline() == "on\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()


def test_a_process_is_known_by_its_start_and_by_the_machines(start):
    started = Started.of(start().pid)
    assert started.alive()
    assert not replace(started, start=str(int(started.start) - 1)).alive()  # the pid, given to another since
    assert not replace(started, boot="before the last start").alive()
    assert not Started.of(2**22 + 1).alive()


def test_what_only_its_parent_has_not_heard_of_yet_is_gone(start):
    process = start()
    started = Started.of(process.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while started.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not started.alive() and process.returncode is None


def test_a_signal_never_reaches_the_pids_next_owner(start):
    process = start()
    tell(process.pid, "1", signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    tell(process.pid, Started.of(process.pid).start, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


def test_all_that_a_process_started_is_ended_with_it_and_nothing_else(start):
    ours, others = start(PARENT, "one/prefect"), start(None, "other/prefect")
    assert len(marked("one/prefect")) == len(marked("one/")) == 2  # its child is in a session of its own
    assert marked("one/mlflow") == marked("one/pre") == {}
    assert [child.pid for child in children(Started.of(ours.pid))] == [
        pid for pid in marked("one/prefect") if pid != ours.pid
    ]
    assert end_marked(["one/prefect"], [Started.of(ours.pid)], 5) == 0
    assert marked("one/") == {} and ours.wait(10) == -signal.SIGTERM
    assert others.poll() is None


def test_a_child_that_its_killed_parent_left_is_ended_too(start):
    parent = start(PARENT, "one/mlflow")
    parent.kill()
    parent.wait()
    assert len(marked("one/mlflow")) == 1
    end_marked(["one/mlflow"], [], 5)
    assert marked("one/mlflow") == {}


def test_what_does_not_end_when_asked_is_killed(start):
    process = start(STUBBORN, "one/serving")
    assert end_marked(["one/serving"], [Started.of(process.pid)], 0.3) == 1
    assert process.wait(10) == -signal.SIGKILL
