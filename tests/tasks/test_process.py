"""A stage's process: what it prints when it fails, and with which status it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.context import Execution
from tasks.job import Job
from tests.conftest import ROOT

RAISES = """
def score(prompts, completions):
    if completions[0] != "A first try.":  # which it is given before anything is sampled
        raise OSError("nobody answers")
    return [0.0 for _ in prompts]
"""


@pytest.fixture
def ended(kitchen: Any, tmp_path: Path) -> Any:
    """`python -m tasks job.json` in a draft of its own: status, lines on stderr, and `result.json`."""

    def run(uses: str, **fields: Any) -> tuple[int, list[str], dict[str, Any]]:
        stage = kitchen.stage(uses, **fields)
        (draft := tmp_path / "draft").mkdir()
        execution = Execution(threads=1, device="cpu")
        job = Job.of(stage, uses=uses, key="k" * 8, seed=0, execution=execution, draft=draft)
        (draft / "job.json").write_text(job.model_dump_json())
        done = subprocess.run(
            [sys.executable, "-m", "tasks", str(draft / "job.json")], cwd=ROOT, env=os.environ, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.splitlines(), json.loads((draft / "result.json").read_text())

    return run


def test_a_stage_that_fails_with_a_message_of_its_own_prints_that_line_alone(
    kitchen, base, demonstrations, pairs, ended
):
    idle = kitchen.make(
        "sft", base=base.handle, data=demonstrations.handle, max_steps=1, learning_rate=1e-30, eval_rows=0
    )
    status, lines, result = ended("merge", adapter=idle.handle, data=pairs.handle)
    message = "the adapter changes nothing: its logits are the base's; was it trained?"
    assert (status, lines) == (1, [f"error: {message}"])
    assert result == {"error": "StageError", "message": message}


def test_what_the_user_must_correct_is_one_line_and_status_2(kitchen, base, pairs, ended):
    """Known only when it runs: the data has no held-out rows, of which a reward model's figures are made."""
    data = kitchen.make("data", **{**dict(pairs.stage), "test_source": None, "test_size": 0})
    status, lines, result = ended("reward", base=base.handle, data=data.handle)
    assert status == 2 and lines == [f"error: {result['message']}"]
    assert result["error"] == "DataError" and "wanted held-out pairs" in result["message"]


def test_an_error_that_nobody_foresaw_shows_where_it_happened(dpo, pairs, tmp_path, ended):
    there = pairs.handle.model_copy(update={"path": tmp_path})
    (tmp_path / "test.jsonl").write_text('{"row": 1}\n')
    status, lines, result = ended("merge", adapter=dpo.handle, data=there)
    assert status == 1 and lines[0] == "Traceback (most recent call last):"
    assert any("divergence.py" in line for line in lines)
    assert lines[-1] == "error: KeyError: 'prompt_ids'"
    assert result == {"error": "KeyError", "message": "KeyError: 'prompt_ids'"}


def test_one_of_ours_that_has_a_cause_shows_it(sft, pairs, tmp_path, ended):
    """A reward function's own error: whoever wrote that needs the line."""
    (tmp_path / "judge.py").write_text(RAISES)
    status, lines, result = ended(
        "best_of_n", policy=sft.handle, data=pairs.handle, n=2, max_new_tokens=4,
        programs={f"{tmp_path}/judge.py:score": 1.0},
    )  # fmt: skip
    assert status == 1 and "Traceback (most recent call last):" in lines
    assert any(f"{tmp_path}/judge.py" in line and ", line 4, in score" in line for line in lines)
    assert lines[-1].startswith("error: reward judge:score raised OSError: nobody answers on row ")
    assert result["error"] == "StageError"
