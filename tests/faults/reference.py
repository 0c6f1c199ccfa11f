"""The undisturbed run that all is compared with: `pipelines/tiny.yaml`, trained for longer, and RLOO and GRPO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.job import Job

ROOT = Path(__file__).resolve().parents[2]
ALIGN = Path(sys.executable).parent / "align"
SAVE_INTERVAL = 2
LONGER = ("sft.epochs=3", "reward.epochs=3", "dpo.epochs=3", "ppo.total_episodes=192")
EXECUTION = ("--exec", f"save_interval={SAVE_INTERVAL}")
MORE = """
  rloo:
    {uses: rloo, policy: sft, data: pairs, reward: checks, num_generations: 4, batch_size: 16, total_episodes: 192,
     max_new_tokens: 8, learning_rate: 1.0e-3, eval_rows: 4}
  grpo:
    {uses: grpo, policy: sft, data: pairs, reward: checks, num_generations: 4, batch_size: 16, total_episodes: 192,
     max_new_tokens: 8, learning_rate: 1.0e-3, eval_rows: 4}
"""


@dataclass
class Reference:
    """A folder with the recipe, the undisturbed run's home, and one Prefect home for all runs."""

    folder: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By label, as `align run --json` gives them."""

    @property
    def home(self) -> Path:
        return self.folder / "reference"

    def make(self, until: str | None) -> None:
        """Run it, or find it; with `until` only what that stage needs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = (ROOT / "pipelines" / "tiny.yaml").read_text() + MORE
        (self.folder / "faults.yaml").write_text(
            recipe.replace("quickstart_data/", f"{ROOT}/pipelines/quickstart_data/")
        )
        process = self.run(self.home, until)
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the undisturbed run failed:\n{err}")
        self.stages = {stage["name"]: stage for stage in json.loads(out)["stages"]}

    def run(self, home: Path, until: str | None, **environment: str) -> subprocess.Popen[str]:
        """`align run` of the recipe."""
        words = [str(self.folder / "faults.yaml"), *LONGER, *EXECUTION, *(("--until", until) if until else ())]
        return self.align(home, "run", *words, **environment)

    def align(self, home: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
        """The command, on this home."""
        given = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        prefect = self.folder / "prefect"
        prefect.mkdir(parents=True, exist_ok=True)
        database = f"sqlite+aiosqlite:///{prefect / 'prefect.db'}"  # made once, and not for each home again
        own = {"ALIGN_HOME": str(home), "PREFECT_HOME": str(prefect)}
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
        return subprocess.Popen(
            [str(ALIGN), *words, "--json"], cwd=ROOT, env={**given, **own, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def result(self, stage: str) -> Path:
        """Its folder in the store."""
        return Path(self.stages[stage]["path"]).parent

    def job(self, stage: str, draft: Path) -> Job:
        """The job that makes the stage anew, in the folder `draft`."""
        job = Job.model_validate_json((self.result(stage) / "job.json").read_text())
        return job.model_copy(update={"draft": draft})
