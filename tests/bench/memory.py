"""Measures the memory of training, beside what `align plan` says of it: `python -m tests.bench.memory`.

    --device cpu|cuda    where (cpu)
    --base random        the model: the quickstart's shape with random weights, made on the spot
    --only WORDS         settings whose name has these words
    --jobs N             settings at the same time (1 on the CPU, 6 on a GPU, whose settings don't see each other)
    --work FOLDER        where the workload is, or will be (a temporary folder)

Each setting trains for two steps, or ten where memory grows for longer, in a process of its own, in the environment
that the flow gives a trainer. Its peak is what its manifest would say: on the CPU the most that the process ever had in
memory, on a GPU the most that tensors took.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.stage import Terms
from tests.bench.memory_settings import SETTINGS, Setting
from tests.bench.memory_workload import Workload

ROOT = Path(__file__).resolve().parents[2]
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""flows/running/launch.py's, which can't be imported where Prefect is not installed; a test holds them equal."""


@dataclass(frozen=True)
class Measured:
    """One setting: bytes by part as estimated, and the peak as measured, with the seconds it took."""

    name: str
    parts: dict[str, int]
    peak: int
    seconds: float

    @property
    def estimate(self) -> int:
        return sum(self.parts.values())

    @property
    def off(self) -> float:
        """(estimate - peak) / peak."""
        return self.estimate / self.peak - 1


def measure(setting: Setting, work: Workload, device: str) -> Measured:
    """Run it to its end; raises RuntimeError with its last lines if it fails."""
    job = setting.job(work, device)
    shutil.rmtree(job.draft, ignore_errors=True)
    job.draft.mkdir(parents=True)
    path = job.draft / "job.json"
    path.write_text(job.model_dump_json())
    ran = subprocess.run(
        [sys.executable, "-m", "tasks", str(path)], cwd=ROOT, env={**KEEP_MEMORY, **os.environ, "ALIGN_EVENTS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode != 0:
        raise RuntimeError(f"{setting.name}: status {ran.returncode}\n{ran.stdout[-500:]}\n{ran.stderr[-2500:]}")
    result = json.loads((job.draft / "result.json").read_text())
    shutil.rmtree(job.draft / "work", ignore_errors=True)
    return Measured(setting.name, estimated(setting, work, device), int(result["metrics"]["cost/peak_memory_bytes"]),
                    result["seconds"])  # fmt: skip


def estimated(setting: Setting, work: Workload, device: str) -> dict[str, int]:
    """Bytes by part."""
    job = setting.job(work, device)
    memory = job.stage().memory(Terms(job.execution, "cuda" if device == "cuda" else "cpu", setting.bounds(work)))
    assert memory is not None
    return memory.parts()


def line(one: Measured) -> str:
    """A row of the table, in MiB."""
    parts = "  ".join(f"{name} {size / 2**20:,.0f}" for name, size in one.parts.items() if size)
    figures = f"{one.estimate / 2**20:7,.0f} {one.peak / 2**20:7,.0f} {one.off:+7.1%} {one.seconds:5.0f} s"
    return f"{one.name:42} {figures}  {parts}"


def prepared(folder: Path, device: str) -> Workload:
    """The workload in `folder`, made there if it is not."""
    work = Workload(folder)
    if not work.ready():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run(
            [sys.executable, "-m", "tests.bench.memory_workload", str(folder), device], cwd=ROOT, check=True,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    return work


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if any setting failed."""
    parser = argparse.ArgumentParser(description="measured peaks beside the plan's estimates, in MiB")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", choices=["random"], default="random")
    parser.add_argument("--only", default="", help="settings whose name has these words")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args(argv)
    status = 0
    with tempfile.TemporaryDirectory() as scratch:
        work = prepared(args.work or Path(scratch) / "work", args.device)
        print(f"{'setting':42} {'plan':>7} {'peak':>7} {'off':>7} {'time':>7}  parts (MiB)")  # noqa: T201
        wanted = [
            setting for setting in SETTINGS
            if all(word in setting.name for word in args.only.split())
            and (work.has_four_bits() or not setting.four_bits)
        ]  # fmt: skip
        with ThreadPoolExecutor(args.jobs or (6 if args.device == "cuda" else 1)) as pool:
            for done in [pool.submit(measure, setting, work, args.device) for setting in wanted]:
                try:
                    print(line(done.result()), flush=True)  # noqa: T201
                except RuntimeError as error:
                    print(f"{error}", file=sys.stderr, flush=True)  # noqa: T201
                    status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
