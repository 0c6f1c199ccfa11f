"""A job file: one bound stage as JSON, the boundary between whoever orchestrates and the process that trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from artifacts.errors import OutOfMemoryError
from artifacts.kinds import describe, revive
from tasks.context import Context, Execution, MetricsLog, Progress
from tasks.parallel.processes import ALONE, Processes
from tasks.registry import stage_class
from tasks.settings import Optimizing
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

    def run(self, context: Context) -> dict[str, float]:
        """Do the work; gives the stage's figures."""
        from tasks.training.one_tokenizer import require_one_tokenizer

        stage = self.stage()
        require_one_tokenizer(stage)
        return stage.run(context)

    def in_several(self) -> bool:
        """Whether it is for several processes: of stages that don't train there is nothing to divide."""
        return self.execution.launch.several and issubclass(stage_class(self.uses), Optimizing)

    def out_of_memory(self, how: str, peak_bytes: int) -> OutOfMemoryError:
        """What to say of a stage that needed too much; `how` tells who said so."""
        stage = self.stage()
        rows, smaller = stage.micro_batch(self.execution), stage.in_half_the_memory(self.execution)
        if smaller is not None:
            advice = f"try --exec micro_batch={smaller.micro_batch} (it was {rows}), or --exec retries=2"
        elif stage.keyed_micro_batch(self.execution) is not None and rows != 1:
            advice = f"a smaller micro_batch than {rows} would be another result; give it with --exec micro_batch=..."
        else:
            advice = "its passes can't be made smaller; shorten the rows, or take a machine with more memory"
        return OutOfMemoryError(f"{how}: peak {peak_bytes / 2**30:.2f} GiB; {advice}")

    def context(self, *, events: bool, processes: Processes = ALONE) -> Context:
        """Where it runs; makes the folders. Of several processes all but the first have a log and an output of their
        own, which nobody reads."""
        work = self.draft / "work"
        place = self.draft if processes.first else work / "processes" / str(processes.rank)
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)  # what an interrupted attempt left must not enter the digest
        out.mkdir(parents=True)
        work.mkdir(parents=True, exist_ok=True)
        return Context(
            out=out, work=work, metrics=MetricsLog(place / "metrics.jsonl"),
            progress=Progress(events=events, shown=processes.first), seed=derive_seed(self.seed, self.uses),
            execution=self.execution, processes=processes,
        )  # fmt: skip
