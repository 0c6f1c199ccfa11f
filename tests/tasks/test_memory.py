"""A stage that runs out of memory says so in words, whoever noticed: Python, torch on the CPU, a GPU's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import StageError, ran_out_of_memory
from tasks.context import Execution
from tasks.job import Job
from tests.conftest import ROOT

RAISED = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
GREEDY = """
import torch

def score(prompts, completions):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
"""


@pytest.mark.parametrize("error", RAISED, ids=lambda error: f"{type(error).__name__} {str(error)[:30]}")
def test_it_is_known_from_what_libraries_really_raise(error: Exception) -> None:
    assert ran_out_of_memory(error)


def test_nothing_else_passes_for_it() -> None:
    assert not ran_out_of_memory(RuntimeError("shapes do not match"))
    assert not ran_out_of_memory(StageError("the judge said: CUDA out of memory"))


def test_a_gpus_error_inside_a_stage_becomes_words_with_what_to_try(kitchen: Any, sft: Any, pairs: Any, tmp_path: Path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    (draft := tmp_path / "draft").mkdir()
    stage = kitchen.stage(
        "ppo", policy=sft.handle, data=pairs.handle, programs={f"{tmp_path}/greedy.py:score": 1.0}, batch_size=8,
        total_episodes=16, num_mini_batches=2, max_new_tokens=4, eval_rows=0,
    )  # fmt: skip
    execution = Execution(threads=1, device="cpu", micro_batch=4)
    job = Job.of(stage, uses="ppo", key="k" * 8, seed=0, execution=execution, draft=draft)
    (draft / "job.json").write_text(job.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "tasks", str(draft / "job.json")],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    result = json.loads((draft / "result.json").read_text())
    assert result["error"] == "OutOfMemoryError"
    assert "out of memory: peak" in result["message"]
    assert "try --exec micro_batch=2 (it was 4), or --exec retries=2" in result["message"]
