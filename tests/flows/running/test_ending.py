"""Trainers that are asked to end, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from artifacts.errors import InterruptedStage
from flows.running import launch

SAVES = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    yield
    launch.RUNNING.clear()
    launch.ENDING.clear()


def trainer(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    launch.RUNNING.add(process.pid)

    def waited_for() -> None:
        process.wait()
        launch.RUNNING.discard(process.pid)

    threading.Thread(target=waited_for).start()
    return process


def test_whoever_takes_too_long_is_killed_and_whoever_began_meanwhile_is_asked_too() -> None:
    slow, late = trainer(SAVES), list[subprocess.Popen[str]]()
    threading.Timer(
        0.3, lambda: late.append(trainer("import time; print('ready', flush=True); time.sleep(60)"))
    ).start()
    launch.end_trainers(5)
    assert (slow.wait(20), late[0].wait(20)) == (-signal.SIGKILL, -signal.SIGTERM)
    for process in (slow, *late):
        process.communicate()
    with pytest.raises(InterruptedStage, match="run the same command again"):
        launch.go_on()
