"""One stage's draft, and the processes that work in it one after another."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from flows.running.launch import KEEP_MEMORY
from tasks.training.checkpoints import damage
from tests.faults.reference import ROOT, Reference
from tests.faults.schedule import Trial
from tests.left import steps_in

MARK = "ALIGN_FAULTS_WORK"
"""A variable in the environment of all processes of one piece of work."""
IMPORTS_S = 6.0
GOES_ON = re.compile(r"going on (?:from checkpoint-|after )(\d+)")


class NotStruckError(Exception):
    """The process ended before the fault could strike."""


class Work:
    """`folder/draft`, as the store keeps one, and what each process said: `folder/<n>.txt`."""

    def __init__(self, reference: Reference, trial: Trial, folder: Path) -> None:
        self.trial, self.draw, self.folder = trial, random.Random(trial.seed), folder
        self.draft = folder / "draft"
        self.draft.mkdir(parents=True)
        self.job = reference.job(trial.stage, self.draft).model_dump_json()
        self.seconds = IMPORTS_S + reference.stages[trial.stage]["metrics"]["cost/seconds"]
        """What the stage takes when nobody disturbs it."""
        self.started = 0

    def start(self, *how: str) -> subprocess.Popen[bytes]:
        """`python -m tasks job.json`; with `how` one that kills itself there (dying.py)."""
        (job := self.draft / "job.json").write_text(self.job)
        command = ["-m", "tests.faults.dying", *how] if how else ["-m", "tasks"]
        self.started += 1
        with self.log(self.started).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *command, str(job)], cwd=ROOT, stdout=log, stderr=log,
                env={**KEEP_MEMORY, **os.environ, "PYTHONUNBUFFERED": "1", MARK: str(self.folder)},
            )  # fmt: skip

    def log(self, number: int) -> Path:
        """What the process with this number said, counted from 1."""
        return self.folder / f"{number}.txt"

    def said(self) -> str:
        """What the last process said."""
        return self.log(self.started).read_text()

    def wait(self, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        """Until it is ready; raises NotStruckError if it ends first."""
        while not ready():
            if process.poll() is not None:
                raise NotStruckError
            time.sleep(0.002)

    def checkpoints(self) -> list[Path]:
        """The intact ones, the newest last."""
        found = [path for path in (self.draft / "work").glob("checkpoint-*") if damage(path) is None]
        return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))

    def standing(self) -> Standing:
        """How far it is, now that nobody works."""
        return Standing(self.started, steps_in(self.draft), bool(self.checkpoints()))

    def repeated(self, then: Standing) -> int:
        """Steps that were done then and had to be done again."""
        if not then.has_checkpoint:
            return then.steps
        for number in range(then.started + 1, self.started + 1):
            if found := GOES_ON.search(self.log(number).read_text()):
                return max(0, then.steps - int(found[1]))
        return then.steps


class Standing:
    """How far a stage had come when a process of its ended."""

    def __init__(self, started: int, steps: int, has_checkpoint: bool) -> None:
        self.started, self.steps, self.has_checkpoint = started, steps, has_checkpoint
