"""A home in which everything is made but one stage, and what is seen of a run there from outside."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from artifacts.jsonl import read_jsonl
from flows.tracking.mlflow_server import KEY_TAG
from flows.tracking.points import entities
from tests.faults.outcome import Outcome
from tests.faults.processes import left_over, marked
from tests.faults.reference import Reference
from tests.faults.schedule import Trial
from tests.faults.work import GOES_ON, NotStruckError
from tests.left import left_in, steps_in, timeless

PATIENCE_S = 300


class Shop:
    """One trial's."""

    def __init__(self, reference: Reference, trial: Trial, folder: Path, sooner: float) -> None:
        self.reference, self.trial, self.draw, self.sooner = reference, trial, random.Random(trial.seed), sooner
        self.folder, self.home = folder, folder / "align"
        result = reference.result(trial.stage)
        self.result, self.draft = self.home / "store" / result.name, self.home / "drafts" / result.name
        shutil.copytree(reference.home / "store", self.home / "store", copy_function=os.link)
        shutil.rmtree(self.result)
        self.tracking_uri = f"sqlite:///{self.home / 'mlflow.db'}"
        self.environment: dict[str, str] = {}

    def run(self) -> subprocess.Popen[str]:
        """`align run --until` the stage that is missing."""
        return self.reference.run(self.home, self.trial.stage, **self.environment)

    def until_it_trains(self, process: subprocess.Popen[str]) -> psutil.Process:
        """The trainer, once it has a checkpoint, and a time of chance after that; raises NotStruckError if it ended."""
        while not any(self.draft.glob("work/checkpoint-*/manifest.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        seconds = self.reference.stages[self.trial.stage]["metrics"]["cost/seconds"]
        time.sleep(self.draw.uniform(0, 0.4) * self.sooner * seconds)
        job = str(self.draft / "job.json")
        with suppress(psutil.Error):
            for one in marked("ALIGN_HOME", str(self.home)):
                if job in one.cmdline():
                    return one
        process.communicate(timeout=PATIENCE_S)
        raise NotStruckError

    def orphans(self) -> int:
        """How many of this home's processes are still there, now that none should be."""
        return left_over("ALIGN_HOME", str(self.home))

    def log(self) -> str:
        """What the stage's processes have said."""
        place = self.result if self.result.exists() else self.draft
        return (place / "log.txt").read_text()

    def steps(self) -> int:
        """How far the stage is."""
        return steps_in(self.draft)

    def finish(self, outcome: Outcome, process: subprocess.Popen[str]) -> str:
        """Wait for the run that ends the trial, and compare what it leaves; gives what it said."""
        out, err = process.communicate(timeout=PATIENCE_S)
        outcome.recovered = process.returncode == 0
        if not outcome.recovered:
            outcome.remarks.append(err[-1500:])
            return err
        lines = json.loads(out)["stages"]
        wanted = self.reference.stages
        outcome.equal = all(line["digest"] == wanted[line["name"]]["digest"] for line in lines)
        found, reference = left_in(self.result), left_in(self.reference.result(self.trial.stage))
        outcome.lost, outcome.doubled = found.lost(reference), found.doubled(reference)
        outcome.orphans = self.orphans()
        return err

    def finish_tracking(self, outcome: Outcome) -> None:
        """Let `align sync` send what MLflow lacks, then count what it has."""
        process = self.reference.align(self.home, "sync", **self.environment)
        _, err = process.communicate(timeout=PATIENCE_S)
        if process.returncode:
            outcome.remarks.append(err[-1500:])
        key = self.reference.stages[self.trial.stage]["key"]
        self.count(outcome, MlflowClient(self.tracking_uri), f"tags.`{KEY_TAG}` = '{key}'")

    def count(self, outcome: Outcome, client: MlflowClient, which: str) -> None:
        """Points in MLflow that are missing or there twice; the stage has one run there, which ended well."""
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()], which)
        if [run.info.status for run in runs] != ["FINISHED"]:
            outcome.recovered = False
            outcome.remarks.append(f"in MLflow it has the runs {[(run.info.run_id, run.info.status) for run in runs]}")
            return
        points = read_jsonl(self.result / "metrics.jsonl")
        wanted = {named(metric) for point in points for metric in entities(point)}
        histories = (client.get_metric_history(runs[0].info.run_id, name) for name in runs[0].data.metrics)
        found = Counter(named(metric) for history in histories for metric in history)
        outcome.lost += len(wanted - set(found))
        outcome.doubled += sum(number - 1 for number in found.values())

    def repeated(self, steps: int, said_before: int) -> int:
        """Of `steps` that were done, those beyond the checkpoint from which it went on after it had said so much."""
        goes_on = GOES_ON.search(self.log()[said_before:])
        return max(0, steps - int(goes_on[1])) if goes_on else steps

    def undisturbed(self, outcome: Outcome) -> None:
        """Holds that the stage was made in one go, whatever happened beside it."""
        outcome.repeated = [0]
        if GOES_ON.search(self.log()):
            outcome.remarks.append("the stage was interrupted")


def named(metric: Metric) -> tuple[str, int, float | None]:
    """Which point it is; of one that measures time, which comes out otherwise when a step is done again, no value."""
    return metric.key, metric.step, metric.value if timeless({metric.key: 0.0}) else None
