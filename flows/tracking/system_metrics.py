"""What a trainer takes of the machine while it works, under MLflow's own names, so that its page for them shows it.

    system/cpu_utilization_percentage       of all cores, by the trainer and its children
    system/system_memory_usage_megabytes    resident, of the trainer and its children together
    system/system_memory_usage_percentage   the same, of the machine's memory
    system/gpu_0_utilization_percentage     and memory and power: of each GPU, whoever uses it

Sampled from outside: the trainer neither waits for it nor needs a library for it. The samples are lines of
`system.jsonl` in the draft, sent like all other points, and no part of the output.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from artifacts.jsonl import read_jsonl
from tasks.context import MetricsLog

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

SYSTEM = "system.jsonl"
FIRST_S = 1.0
"""The first sample comes early, so that a short stage has one too."""


@contextmanager
def sampled(trainer: int, draft: Path, interval_s: float) -> Iterator[None]:
    """Every so many seconds within this block, a line about the process `trainer`; none if `interval_s` is 0."""
    if interval_s <= 0:
        yield
        return
    sampler = Sampler(trainer, draft / SYSTEM, interval_s)
    sampler.start()
    try:
        yield
    finally:
        sampler.over.set()
        sampler.join(interval_s)


class Sampler(threading.Thread):
    """Ends with the process that it looks at; never raises."""

    def __init__(self, trainer: int, file: Path, interval_s: float) -> None:
        super().__init__(name="system metrics", daemon=True)
        self.trainer, self.file, self.interval_s = trainer, file, interval_s
        self.over = threading.Event()

    def run(self) -> None:
        try:
            usage, gpus, log = Usage(self.trainer), gpu_monitor(), MetricsLog(self.file)
            log.rewind(sys.maxsize)  # drops half a line of a process that died
            number = len(read_jsonl(self.file)) if self.file.exists() else 0
            wait = min(FIRST_S, self.interval_s)
            while not self.over.wait(wait):
                metrics = {f"system/{name}": value for name, value in (usage.now() | gpu_usage(gpus)).items()}
                log.log(metrics, step=number, optimizer_step=number)
                number, wait = number + 1, self.interval_s
        except (psutil.Error, OSError):  # it has ended; or the disk is full, which the trainer says better
            return


class Usage:
    """Of a process and its children. Raises psutil.Error once it is gone."""

    def __init__(self, process: int) -> None:
        self.process = psutil.Process(process)
        self._before = (time.monotonic(), self._taken()[0])

    def now(self) -> dict[str, float]:
        """Processor use since the last call, and memory."""
        seconds, resident = self._taken()
        then, spent = self._before
        self._before = at, _ = time.monotonic(), seconds
        cores = psutil.cpu_count() or 1
        return {
            "cpu_utilization_percentage": 100 * max(0.0, seconds - spent) / max(at - then, 1e-9) / cores,
            "system_memory_usage_megabytes": resident / 1e6,
            "system_memory_usage_percentage": 100 * resident / psutil.virtual_memory().total,
        }

    def _taken(self) -> tuple[float, int]:
        """Processor seconds until now, those of children that ended too, and resident bytes."""
        seconds, resident = _of(self.process)
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                its_seconds, its_resident = _of(child)
                seconds, resident = seconds + its_seconds, resident + its_resident
        return seconds, resident


def _of(process: psutil.Process) -> tuple[float, int]:
    times = process.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system
    return float(seconds), int(process.memory_info().rss)


def gpu_monitor() -> GPUMonitor | None:
    """MLflow's own, where there are GPUs and the package nvidia-ml-py."""
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return GPUMonitor()
    except (ImportError, RuntimeError):
        return None


def gpu_usage(monitor: GPUMonitor | None) -> dict[str, float]:
    """`gpu_0_utilization_percentage` and so on, now."""
    if monitor is None:
        return {}
    monitor.collect_metrics()
    found = {name: float(value) for name, value in monitor.aggregate_metrics().items()}
    monitor.clear_metrics()
    return found
