"""A method is one file and one line: a made-up one, added to a copy of the code by just that, trains and is cached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

METHOD = '''
"""A made-up method: hinge on the mean log-probabilities."""

from tasks.context import Context
from tasks.tuning import Paired


def loss(chosen, rejected, *, beta):
    return (1 - beta * (chosen - rejected)).clamp(min=0)


class MadeUp(Paired):
    """Trains a copy of `policy` on pairs."""

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.pair_trainer import train_pairs

        return train_pairs(self, ctx, lambda chosen, rejected: loss(chosen, rejected, beta=self.beta))
'''
LINE = '    "made_up": "tasks.made_up:MadeUp",\n'
RECIPE = """
version: 1
execution: {threads: 1}
stages:
  base:  {uses: base, source: "builtin:tiny-llama"}
  pairs: {uses: data, base: base, form: preferences, source: pipelines/quickstart_data/preferences.jsonl, limit: 32}
  mine:  {uses: made_up, policy: base, data: pairs, lora: {rank: 4}, learning_rate: 1.0e-3, eval_rows: 8}
"""
ALIGN = "import sys; from flows.cli import main; sys.exit(main())"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code in another folder, with one file and one line more."""
    for layer in ("artifacts", "tasks", "pipelines", "flows"):
        shutil.copytree(ROOT / layer, tmp_path / layer, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tasks" / "made_up.py").write_text(METHOD)
    registry = tmp_path / "tasks" / "registry.py"
    registry.write_text(registry.read_text().replace('    "merge":', LINE + '    "merge":'))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def test_a_made_up_method_is_planned_trained_and_cached(copy):
    def align(*words: str) -> dict:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        own = {"PYTHONPATH": str(copy), "ALIGN_HOME": str(copy / "home"), "PREFECT_HOME": str(copy / "prefect")}
        done = subprocess.run(
            [sys.executable, "-c", ALIGN, *words, "--json"],
            cwd=copy,
            env={**kept, **own},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}

    assert not align("plan", "mine.yaml")["mine"]["cached"]
    made = align("run", "mine.yaml", "--offline-tracking")["mine"]
    assert made["status"] == "ran" and made["metrics"]["train/loss"] > 0
    assert 0 < made["metrics"]["validation/rewards/accuracies"] <= 1
    assert align("plan", "mine.yaml")["mine"]["cached"]
