"""A job file: one bound stage as JSON, the boundary between whoever orchestrates and the process that trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from artifacts.kinds import describe, revive
from tasks.context import Context, Execution, MetricsLog, Progress
from tasks.registry import stage_class
from tasks.stage import Stage, derive_seed


class Job(BaseModel):
    """Schema 1. `python -m tasks job.json` runs it, with neither Prefect nor MLflow installed."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = 1
    uses: str
    key: str
    settings: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    seed: int
    execution: Execution
    draft: Path

    @classmethod
    def of(cls, stage: Stage, *, uses: str, key: str, seed: int, execution: Execution, draft: Path) -> Job:
        """The job that runs `stage` in the folder `draft`."""
        inputs = {name: describe(artifact) for name, artifact in stage.bound().items()}
        return cls(
            uses=uses,
            key=key,
            settings=stage.settings(),
            inputs=inputs,
            seed=seed,
            execution=execution,
            draft=draft,
        )

    def stage(self) -> Stage:
        """The stage, bound again."""
        bound = {name: revive(described) for name, described in self.inputs.items()}
        return stage_class(self.uses).model_validate({**self.settings, **bound})

    def context(self, *, events: bool) -> Context:
        """Where it runs; makes the folders."""
        out, work = self.draft / "out", self.draft / "work"
        shutil.rmtree(out, ignore_errors=True)  # what an interrupted attempt left must not enter the digest
        out.mkdir(parents=True)
        work.mkdir(parents=True, exist_ok=True)
        return Context(
            out=out, work=work, metrics=MetricsLog(self.draft / "metrics.jsonl"), progress=Progress(events=events),
            seed=derive_seed(self.seed, self.uses), execution=self.execution,
        )  # fmt: skip
