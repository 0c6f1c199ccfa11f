"""A pipeline run in MLflow: the parent of its stages' runs, made from what `$ALIGN_HOME/runs/<run_id>/` holds.

facts.json   experiment, tags, parameters and data sets; at the end description, figures and status
files/       what becomes its artifacts: the recipe, the plan, the comparison
lock         held by the process that the run is of
<server>/    what that server has of it (flows/sent.py)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag

from artifacts.locking import held, locked, wait_until
from artifacts.syncing import write_whole
from flows.mlflow_server import MlflowServer
from flows.points import accepted, numbers
from flows.sent import Sent
from flows.tracked_stage import open_run, read_by
from pipelines.plan import Plan

NOTE_TAG = "mlflow.note.content"
NOTE_LIMIT = 7900


class TrackedRun:
    """One run's folder."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.folder = home / "runs" / run_id
        self.files = self.folder / "files"
        self._facts = self.folder / "facts.json"
        self._lock: int | None = None

    @property
    def facts(self) -> dict[str, Any] | None:
        """What is known of the run so far; None if it was never tracked from here."""
        return json.loads(self._facts.read_text()) if self._facts.exists() else None

    def begin(self, plan: Plan, flow_run_id: str | None, waiting: Callable[[], None]) -> None:
        """Write down what the run carries from the start, and hold its lock for as long as this process lives.

        A run that was begun before, and goes on, is the same in MLflow too. `waiting` is called, again and again, while
        its earlier process is still there.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        wait_until(partial(locked, self._lock), waiting)
        for path in self.folder.glob("*/run_id"):
            sent = Sent(path.parent)
            sent.unmark("complete")
            sent.mark("goes_on")
        recipe, run_id = plan.recipe, self.folder.name
        (self.files / "recipe.json").write_text(recipe.model_dump_json(indent=1, exclude={"path"}))
        (self.files / recipe.path.name).write_text(recipe.path.read_text())
        payloads = {planned.label: planned.payload for planned in plan.stages}
        (self.files / "plan.json").write_text(json.dumps(payloads, indent=1, sort_keys=True))
        self._write({
            "name": run_id, "experiment": recipe.name, "status": "RUNNING", "summary": "", "metrics": {}, "ui": None,
            "tags": {"align.run_id": run_id, "align.kind": "pipeline", "prefect.flow_run_id": flow_run_id or ""},
            "params": {"seed": recipe.seed, "stages": ", ".join(planned.label for planned in plan.stages)},
            "data": [one for planned in plan.stages for one in read_by(planned)], "began": time.time(),
        })  # fmt: skip

    def end(self, status: str, **more: Any) -> None:
        """Write down how the run ended, and what more is known: `summary`, headline `metrics`, Prefect's page `ui`."""
        self._write({**(self.facts or {}), "status": status, **more})

    def lost(self) -> bool:
        """Whether its process is gone without a word."""
        return self.facts is not None and self.facts["status"] == "RUNNING" and not self.live()

    def live(self) -> bool:
        """Whether its process is there."""
        if not (self.folder / "lock").exists():
            return False
        with held(self.folder / "lock") as free:
            return not free

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
                self._send_files(server, open_run(server, sent, facts, own, facts["tags"]))
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
        tags = [RunTag(NOTE_TAG, note(server.experiment(facts["experiment"]), stages, facts)[:NOTE_LIMIT])]
        links = {accepted(f"align.stage.{one['name']}"): one["mlflow_run_id"] for one in stages}
        tags += [RunTag(name, linked) for name, linked in links.items() if linked]
        at = int(self._facts.stat().st_mtime * 1000)
        points = [Metric(name, value, at, 0) for name, value in numbers(facts["metrics"]).items()]
        server.client.log_batch(run, metrics=points, tags=tags)
        server.client.set_terminated(run, facts["status"], end_time=at)
        sent.mark("complete")

    def _send_files(self, server: MlflowServer, run: str) -> None:
        for path in sorted(self.files.iterdir()):
            server.client.log_artifact(run, str(path))

    def _write(self, facts: Mapping[str, Any]) -> None:
        write_whole(self._facts, json.dumps(facts))


def note(experiment: str, stages: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """The parent run's description: the summary, with links to the runs of its stages, cached ones too."""
    links = [
        f"- [{stage['name']}](#/experiments/{experiment}/runs/{stage['mlflow_run_id']}) ({stage['status']})"
        for stage in stages
        if stage["mlflow_run_id"]
    ]
    flow = [f"[Prefect flow run]({facts['ui']})"] if facts["ui"] else []
    return "\n".join([*flow, "", "Runs of the stages:", *links, "", facts["summary"]])
