"""A pipeline run in MLflow: the parent of its stages' runs, made from what its folder holds (running/run_folder.py)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag

from artifacts.locking import locked, wait_until
from artifacts.syncing import write_whole
from flows.running.run_folder import RunFolder
from flows.tracking.compare_links import Place
from flows.tracking.comparison_tables import TABLES
from flows.tracking.earlier_run import FLOW_RUN_TAG, FOLDER_TAG, RECIPE_TAG
from flows.tracking.experiment_page import furnish
from flows.tracking.headlines import run_params
from flows.tracking.mlflow_server import MlflowServer, source_tags
from flows.tracking.notes import NOTE_TAG, run_note, with_version
from flows.tracking.points import TABLES_TAG, accepted, numbers
from flows.tracking.sent import Sent
from flows.tracking.stage_facts import log_params, read_by
from flows.tracking.tracked_stage import open_run
from pipelines.plan import Plan

HELD: dict[Path, int] = {}
"""The locks of this process's runs, by file. The kernel would let a second descriptor of the same process wait."""


@dataclass(frozen=True)
class Origin:
    """How a pipeline run came about."""

    flow_run_id: str | None = None
    ui: str | None = None
    """Prefect's page of the flow run."""
    changes: str = ""
    """What differs from the recipe, as it is typed: `dpo.beta=0.2 seed=1`."""
    running_since: float | None = None
    """When Prefect's server took it for running, by that server's clock, in seconds since the epoch."""


class TrackedRun(RunFolder):
    """One run's folder, and what a server gets of it."""

    def begin(self, plan: Plan, origin: Origin, waiting: Callable[[], None]) -> None:
        """Write down what the run carries from the start, and hold its lock for as long as this process lives.

        A run that was begun before, and goes on, is the same in MLflow too, also where this process began it. `waiting`
        is called, again and again, while its earlier process is still there.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        self._hold(waiting)
        for path in self.folder.glob("*/run_id"):
            sent = Sent(path.parent)
            sent.unmark("complete")
            sent.mark("goes_on")
        recipe, run_id = plan.recipe, self.folder.name
        (self.files / "recipe.json").write_text(recipe.model_dump_json(indent=1, exclude={"path"}))
        (self.files / recipe.path.name).write_text(recipe.path.read_text())
        payloads = {planned.label: planned.payload for planned in plan.stages}
        (self.files / "plan.json").write_text(json.dumps(payloads, indent=1, sort_keys=True))
        source = " ".join(filter(None, [recipe.path.name, origin.changes]))
        self._write({
            "name": run_id, "experiment": recipe.name, "status": "RUNNING", "summary": "",
            "started": (self.facts or {}).get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "began": origin.running_since or time.time(), "metrics": {}, "ui": origin.ui,
            "params": run_params(plan, origin.changes),
            "tags": {
                "align.run_id": run_id, "align.kind": "pipeline", FLOW_RUN_TAG: origin.flow_run_id or "",
                RECIPE_TAG: str(recipe.path.absolute()), FOLDER_TAG: str(recipe.path.resolve().parent),
                **source_tags(source),
            },
            "data": [one for planned in plan.stages for one in read_by(planned)],
        })  # fmt: skip

    def end(self, status: str, **more: Any) -> None:
        """Write down how the run ended, and what more is known: `summary`, headline `metrics`, and their `policy`.

        When it ended is what it says first; what is learned later, such as that Prefect knows, changes nothing of that.
        """
        facts = self.facts or {}
        since = datetime.fromisoformat(facts["started"]).timestamp() if "started" in facts else 0.0
        # No run ends before it began, though the clock was set back meanwhile.
        self._write({"ended": max(time.time(), since), **facts, "status": status, **more})

    def sent(self, server: str) -> Sent:
        """What a server has of it."""
        return Sent(self.folder / server)

    def open(self, server: MlflowServer) -> str | None:
        """The run's id on the server, where it is made unless it is there; raises MlflowException or OSError."""
        sent = self.sent(server.name)
        if (facts := self.facts) is None:
            return None
        with sent.held() as free:
            if free and not sent.has("described"):
                own = {name: facts["tags"][name] for name in ("align.run_id", "align.kind")}
                furnish(server.client, server.experiment(facts["experiment"]))
                self._send_files(server, open_run(server, sent, facts, own, facts["tags"]))
                sent.mark("goes_on")  # on another machine it may have ended
            if free and sent.run_id and sent.has("goes_on"):
                server.client.update_run(sent.run_id, status="RUNNING")
                sent.unmark("goes_on")
        return sent.run_id

    def close(self, server: MlflowServer, stages: Sequence[Mapping[str, Any]]) -> None:
        """Description, figures and artifacts of a run that has ended, and links to its stages' runs."""
        run, facts, sent = self.open(server), self.facts, self.sent(server.name)
        if run is None or facts is None or facts["status"] == "RUNNING" or sent.has("complete"):
            return
        self._send_files(server, run)
        found = {stage["key"]: server.place(stage["mlflow_run_id"]) for stage in stages}
        place = Place(run, server.experiment(facts["experiment"]))
        files = [path.name for path in self.files.iterdir()]
        said = run_note(place, files, stages, found.get, facts)
        tags = [RunTag(NOTE_TAG, with_version(server.client, run, said))]
        if tables := [{"path": name, "type": "table"} for name in TABLES if name in files]:
            tags.append(RunTag(TABLES_TAG, json.dumps(tables)))
        for stage in stages:
            if (linked := found[stage["key"]]) is not None:
                tags.append(RunTag(accepted(f"align.stage.{stage['name']}"), linked.run))
        # Of one that failed and is tried again it may yet be another, and MLflow lets no parameter change.
        if facts["status"] == "FINISHED" and (policy := facts.get("policy")):
            log_params(server.client, run, {"policy": policy})
        at = int(facts.get("ended", self._facts.stat().st_mtime) * 1000)
        points = [Metric(name, value, at, 0) for name, value in numbers(facts["metrics"]).items()]
        server.client.log_batch(run, metrics=points, tags=tags)
        server.client.set_terminated(run, facts["status"], end_time=at)
        sent.mark("complete")

    def _hold(self, waiting: Callable[[], None]) -> None:
        """Between two parts of one flow run the lock stays held: nobody may take its flow run for one that is over."""
        file = (self.folder / "lock").resolve()
        if file in HELD:
            return
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            wait_until(partial(locked, lock), waiting)
        except BaseException:
            os.close(lock)
            raise
        HELD[file] = lock

    def _send_files(self, server: MlflowServer, run: str) -> None:
        for path in sorted(self.files.iterdir()):
            server.client.log_artifact(run, str(path))

    def _write(self, facts: Mapping[str, Any]) -> None:
        write_whole(self._facts, json.dumps(facts))
