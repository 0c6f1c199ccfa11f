"""Finished runs without their training: real plans, results, records and MLflow runs, with figures as wanted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.manifest import Manifest
from artifacts.store import Store
from flows.commands.planning import Wanted, plan_of
from flows.commands.summary import conclude
from flows.records import RunRecord, find_record
from flows.running.watch import Watcher
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.tracked_run import Origin
from flows.tracking.tracked_stage import TrackedStage
from flows.tracking.tracker import Tracker
from pipelines.plan import Plan, Planned
from tasks.settings import Optimizing
from tests.conftest import DEMONSTRATIONS, PAIRS, chain, write_rows

PREFECT = "http://127.0.0.1:4200/runs/flow-run/f00d"
HELD_OUT = [{"prompt": "Say five.", "chosen": "five", "rejected": "no", "check": {"kind": "lower"}}]


class MadeRuns:
    """Of the recipe `chain()`; complete models are copies of the one in the folder `model`."""

    def __init__(self, store: Store, write_recipe: Callable[..., Path], model: Path) -> None:
        self.store, self.write_recipe, self.model = store, write_recipe, model
        self.held_out = HELD_OUT
        self.own_bytes = True
        """Whether each complete model is another."""
        self.plans: dict[str, Plan] = {}

    def __call__(self, figures: Mapping[str, float], *, tracked: bool = True, **changes: Any) -> str:
        """Another run, in MLflow unless it is not `tracked`; changes are `stage__field`, or a whole stage. Its id."""
        return self.run(Wanted(self.write(**changes)), lambda planned: figures, tracked=tracked).run_id

    def write(self, **changes: Any) -> Path:
        """The recipe with changes."""
        recipe = chain()
        recipe["stages"]["pairs"]["test_source"] = "held_out.jsonl"
        for name, value in changes.items():
            stage, _, field = name.partition("__")
            recipe["stages"].setdefault(stage, {}).update({field: value} if field else value)
        path = self.write_recipe(recipe)
        write_rows(path.parent / "held_out.jsonl", self.held_out)
        write_rows(path.parent / "more.jsonl", [*PAIRS, {"prompt": "Say six.", "chosen": "six", "rejected": "no"}])
        return path

    def run(
        self, wanted: Wanted, figures: Callable[[Planned], Mapping[str, float]], *, tracked: bool = True
    ) -> RunRecord:
        """A run of a recipe, in which each report has these figures."""
        plan = plan_of(wanted, self.store)
        run_id = f"recipe-{len(list((self.store.home / 'runs').glob('*.json')))}"
        self.plans[run_id] = plan
        for planned in plan.stages:
            if not self.store.folder(planned.uses, planned.key).exists():
                self._commit(planned, figures(planned))
                TrackedStage(self.store, planned.uses, planned.key).note(planned, plan, run_id, PREFECT)
        record = self._record(plan, run_id)
        if tracked:
            self.send()
        return record

    def send(self) -> None:
        """Bring all that was made to MLflow."""
        server = MlflowServer.reach(self.store.home, "recipe")
        for facts in (self.store.home / "tracking").glob("*/facts.json"):
            said = json.loads(facts.read_text())
            TrackedStage(self.store, said["uses"], said["key"]).send(server, None, "FINISHED")

    def tell(self, run_id: str, changes: str = "") -> str:
        """Bring a run and its stages to MLflow as a flow does that finds all of them made; gives the parent's id."""
        plan, record = self.plans[run_id], find_record(self.store.home, run_id)
        origin = Origin("f00d", PREFECT, changes)
        tracker = Tracker.begin(self.store, plan, run_id, origin, Watcher(), offline=False)
        for planned in plan.stages:
            tracker.cached(planned)
        conclude(record, tracker, self.store, PREFECT)
        assert tracker.mlflow_run_id is not None
        replace(record, mlflow_run_id=tracker.mlflow_run_id).save(self.store.home)
        return tracker.mlflow_run_id

    def _commit(self, planned: Planned, figures: Mapping[str, float]) -> None:
        """What the stage would have left: a whole model where it is to be complete, else a file of its own."""
        out = self.store.draft(planned.uses, planned.key) / "out"
        out.mkdir(parents=True)
        metrics: dict[str, float] = {}
        if planned.handle.kind == "checkpoint":
            shutil.copytree(self.model, out, dirs_exist_ok=True)
            (out / "README.md").write_text(planned.key if self.own_bytes else "")
        elif planned.handle.kind == "report":
            metrics = {f"eval/{name}": value for name, value in figures.items()} | {"eval/prompts": 1.0}
            written = {"row": 1, "prompt": "Say five.", "completion": "five", "completion_ids": [5], "truncated": False}
            write_rows(out / "completions.jsonl", [written])
            inputs = planned.payload["inputs"]
            report = {"metrics": metrics, "by_kind": {}, "judge": None, "policy": inputs["policy"]}
            report |= {name: inputs.get(name) for name in ("reward", "against")}
            (out / "report.json").write_text(json.dumps(report))
        elif planned.uses == "data":
            metrics = {"data/rows_train": 4.0}
            write_rows(out / "test.jsonl", self.held_out if planned.label == "pairs" else DEMONSTRATIONS)
        else:
            (out / "weights").write_text(planned.key)
        if isinstance(planned.stage, Optimizing):
            points = [
                {"step": 8 * n, "optimizer_step": n, "time": time.time(), "metrics": {"train/loss": 2.0 / n}}
                for n in (1, 2, 3)
            ]
            write_rows(out.parent / "metrics.jsonl", points)
            metrics = {"train/loss": 2.0 / 3, "cost/tokens": 48.0}
        metrics["cost/seconds"] = 1.0
        self.store.commit(
            uses=planned.uses, key=planned.key, kind=planned.handle.kind, payload=planned.payload,
            fields=planned.stage.settings(), metrics=metrics, seconds=1.0, source_digest="",
        )  # fmt: skip

    def _record(self, plan: Plan, run_id: str) -> RunRecord:
        stages = [
            {"name": each.label, "uses": each.uses, "key": each.key, "status": "ran", "seconds": 1.0,
             "path": str(folder / "out"), "digest": each.handle.digest(), "metrics": Manifest.read(folder).metrics,
             "error": None}
            for each in plan.stages
            if (folder := self.store.folder(each.uses, each.key)).exists()
        ]  # fmt: skip
        record = RunRecord(str(plan.recipe.path), run_id, None, None, stages)
        record.save(self.store.home)
        return record
