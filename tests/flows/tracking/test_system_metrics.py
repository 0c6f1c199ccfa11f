"""What a trainer takes of the machine: measured of it and its children, kept beside its points, sent once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from mlflow.tracking import MlflowClient

from artifacts.jsonl import read_jsonl
from flows.tracking.points import send_points
from flows.tracking.sent import Sent
from flows.tracking.system_metrics import SYSTEM, Usage, gpu_monitor, gpu_usage, sampled

SPINS = """
import time
input()
start = time.process_time()
while time.process_time() < start + 0.5: pass
print(flush=True)
input()
"""
HOLDS = "x = bytearray(200_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint(flush=True)\ninput()"
HAS_A_CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {HOLDS!r}])"


@pytest.fixture
def start():
    """Starts Python on some code; all is ended with the test."""
    started = []

    def start(code: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def wait_for(file: Path, lines: int) -> list[dict]:
    deadline = time.monotonic() + 20
    while not file.exists() or len(read_jsonl(file)) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return read_jsonl(file)


def test_each_gpu_is_measured_where_there_are_some(monkeypatch):
    """As far as a driver's library answers, of which there is none here."""
    from mlflow.system_metrics.metrics import gpu_monitor as theirs

    used = {0: 25, 1: 80}
    driver = SimpleNamespace(
        NVMLError=OSError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=int,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=used[gpu] * 1e6, total=1e8),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=used[gpu]),
        nvmlDeviceGetPowerUsage=lambda gpu: 1000 * used[gpu], nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 100_000,
    )  # fmt: skip
    assert gpu_usage(None) == {}
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(theirs, "pynvml", driver, raising=False)
    monitor = gpu_monitor()
    found = gpu_usage(monitor)
    assert len(found) == 2 * 5 and (found["gpu_0_utilization_percentage"], found["gpu_1_memory_usage_megabytes"]) == (
        25,
        80,
    )
    used[0] = 75
    assert gpu_usage(monitor)["gpu_0_utilization_percentage"] == 75  # of now, and not on average until now


def test_processor_use_is_what_was_used_since_the_last_sample(start):
    process = start(SPINS)
    usage, began = Usage(process.pid), time.monotonic()
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()
    share = usage.now()["cpu_utilization_percentage"] / 100
    assert (
        0.45 < share * (time.monotonic() - began) * psutil.cpu_count() < 0.9
    )  # half a second, and the start of Python
    time.sleep(0.2)
    assert usage.now()["cpu_utilization_percentage"] < 10


def test_memory_is_that_of_the_children_too(start):
    process = start(HAS_A_CHILD)
    process.stdout.readline()
    usage = Usage(process.pid).now()
    assert 200 < usage["system_memory_usage_megabytes"] < 1000
    assert 0 < usage["system_memory_usage_percentage"] < 100


def test_samples_are_numbered_on_after_a_crash_and_stop_with_the_process(start, tmp_path):
    file = tmp_path / SYSTEM
    with sampled(start("input()").pid, tmp_path, 0.02):
        before = len(wait_for(file, 2))
    with file.open("a") as log:
        log.write('{"step": 2, "half')
    process = start("input()")
    with sampled(process.pid, tmp_path, 0.02):
        wait_for(file, before + 2)
        process.kill()
        process.wait()
    found = read_jsonl(file)
    assert [line["step"] for line in found] == list(range(len(found)))
    time.sleep(0.1)
    assert len(read_jsonl(file)) == len(found)


def test_none_are_taken_where_none_are_wanted(start, tmp_path):
    with sampled(start("input()").pid, tmp_path, 0):
        time.sleep(0.1)
    assert not (tmp_path / SYSTEM).exists()


def test_they_are_sent_once_under_mlflows_names_and_do_not_disturb_the_points(tmp_path, database):
    shutil.copy(database, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("e", (tmp_path / "artifacts").as_uri())).info.run_id
    sent = Sent(tmp_path / "sent")
    sent.made(run)
    draft = tmp_path / "draft"
    draft.mkdir()

    def line(step: int, metrics: dict[str, float]) -> str:
        return json.dumps({"step": step, "optimizer_step": step, "time": time.time(), "metrics": metrics}) + "\n"

    name = "system/cpu_utilization_percentage"
    (draft / "metrics.jsonl").write_text(line(0, {"train/loss": 2.0}))
    for count in (1, 3, 3):
        (draft / SYSTEM).write_text("".join(line(step, {name: 50.0 + step}) for step in range(count)))
        send_points(client, run, draft, sent)
    assert [one.value for one in client.get_metric_history(run, name)] == [50.0, 51.0, 52.0]
    assert [one.value for one in client.get_metric_history(run, "train/loss")] == [2.0]
