"""What the tab key offers, asked as a shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from tests.flows.kept_runs import keep_run, stage

ROOT = Path(__file__).parents[3]


@pytest.fixture
def offered(home: Path, tmp_path: Path):
    """The words that are offered at the end of a line, and the heavy libraries that were imported for it."""
    keep_run(home, "tiny-1", [stage("sft"), stage("eval_sft")])

    def ask(line: str) -> list[str]:
        answer = tmp_path / "answer"
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
                 "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_SHELL": "fish"}  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "flows.cli"], cwd=ROOT, env={**os.environ, **asked}, check=False, capture_output=True
        )
        return [word.split("\t")[0].strip() for word in answer.read_text().replace("\013", "\n").split("\n") if word]

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("align ru", ["run", "runs"]),
        ("align run pipelines/ti", ["pipelines/tiny.yaml"]),
        ("align run pipelines/tiny.yaml --until eval_d", ["eval_dpo"]),
        ("align run pipelines/tiny.yaml merg", ["merge.", "merge_ppo."]),
        ("align run pipelines/tiny.yaml dpo.be", ["dpo.beta="]),
        ("align run pipelines/tiny.yaml --exec thr", ["threads="]),
        ("align run pipelines/tiny.yaml --jo", ["--jobs"]),
        ("align show ", ["last", "tiny-1"]),
        ("align logs last ", ["sft", "eval_sft"]),
        ("align compare last:e", ["last:eval_sft"]),
        ("align run no/such.yaml --until ", []),
        ("align completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_verbs_recipes_stages_fields_and_runs_are_offered(offered, line: str, words: list[str]) -> None:
    assert sorted(offered(line)) == sorted(words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_ARGCOMPLETE" in script and "align" in script
    if shell == "bash":
        bound = subprocess.run(
            ["bash", "-c", f"{script}\ncomplete -p align"], capture_output=True, text=True, check=True
        )
        assert "_python_argcomplete" in bound.stdout
