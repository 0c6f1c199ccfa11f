"""`python -m tests.bench.processes [MODE ...]`: one against two processes, by step for SFT and DPO, in sum for all.

A tiny model, 29 rows of unequal length in batches of 8 (feedback: 30), two epochs and a half; PPO on the completions
that both sample alike. Modes are those of `execution.launch`; deepspeed is left out where it is not installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table
from safetensors.torch import load_file

from flows.tables import render
from tasks.__main__ import main as run_job
from tasks.job import Job
from tests.tasks.conftest import Kitchen
from tests.tasks.parallel.stages import FIELDS, execution
from tests.tasks.rl.runs import World, furthest

SHOWN = ("sft", "dpo")
DIVIDED = ("sft", "reward", "dpo")
COMPARED = {
    "ddp": ("sft", "reward", "dpo", "dpo with sft_weight", "kto", "simpo", "orpo", "ppo"),
    "fsdp": DIVIDED,
    "deepspeed": DIVIDED if find_spec("deepspeed") else (),
}
LOSS = {"ppo": "loss/policy_avg"}


class Runs:
    """Stages in one and in two processes, through `python -m tasks` and `accelerate launch`."""

    def __init__(self, home: Path) -> None:
        self.home, self.kitchen = home, Kitchen(home / "store")
        self.base = self.kitchen.make("base", source="builtin:tiny-llama").handle
        preferences = {"source": "preferences.jsonl", "test_source": "validation.jsonl"}
        self.data = {
            "demonstrations": self._data("demonstrations", source="instructions.jsonl", limit=29),
            "preferences": self._data("preferences", **preferences, limit=29),
            "feedback": self._data("feedback", **preferences, split_pairs=True, limit=15),
        }
        (home / "world").mkdir()
        self.world = World.build(home / "world")
        self.sft = self.kitchen.make("sft", base=self.base, data=self.data["demonstrations"], lora={"rank": 4}).handle

    def _data(self, form: str, **more: Any) -> Any:
        return self.kitchen.make("data", base=self.base, form=form, **more).handle

    def made(self, name: str, **how: Any) -> tuple[list[float], dict[str, Any]]:
        """The curve of the loss and the tensors of the adapter."""
        uses = name.partition(" ")[0]
        stage = self.kitchen.stage(uses, **FIELDS[name](self.base, self.sft, self.data, self.world))
        draft = Path(tempfile.mkdtemp(dir=self.home))
        job = Job.of(stage, uses=uses, key="k" * 8, seed=0, execution=execution(**how), draft=draft)
        (draft / "job.json").write_text(job.model_dump_json())
        if run_job([str(draft / "job.json")]) != 0:
            sys.exit(f"{name} failed")
        points = [json.loads(line)["metrics"] for line in (draft / "metrics.jsonl").read_text().splitlines()]
        loss = LOSS.get(uses, "train/loss")
        return [point[loss] for point in points if loss in point], load_file(draft / "out/adapter_model.safetensors")


def compared(runs: Runs, name: str, mode: str) -> tuple[list[str], Table | None]:
    """A line of the table of differences, and the curves side by side for those that are shown."""
    (one, before), (two, after) = runs.made(name), runs.made(name, processes=2, mode=mode)
    differences = [abs(a - b) for a, b in zip(one, two, strict=True)]
    line = [name, mode, str(len(one)), f"{max(differences):.1e}", f"{furthest(before, after):.1e}"]
    if name not in SHOWN or mode != "ddp":
        return line, None
    curves = Table(title=f"{name}: train/loss")
    for title in ("step", "one process", "two processes", "difference"):
        curves.add_column(title, justify="right")
    for step, (a, b) in enumerate(zip(one, two, strict=True), 1):
        curves.add_row(str(step), f"{a:.7f}", f"{b:.7f}", f"{b - a:+.1e}")
    return line, curves


def main(modes: list[str]) -> None:
    """Print the curves, then the largest differences."""
    table = Table(title="one against two processes, at the same global batch")
    for title in ("stage", "mode", "steps", "largest difference of the loss", "of the trained weights"):
        table.add_column(title, justify="left" if title in ("stage", "mode") else "right")
    with tempfile.TemporaryDirectory() as home:
        runs = Runs(Path(home))
        for mode, name in [(each, name) for each in modes or COMPARED for name in COMPARED[each]]:
            line, curves = compared(runs, name, mode)
            table.add_row(*line)
            if curves is not None:
                print(render(curves))  # noqa: T201
    print(render(table))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
