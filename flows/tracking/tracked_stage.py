"""A stage's run in MLflow, made from what its folders hold: now, or later, or again.

`$ALIGN_HOME/tracking/<uses>-<key>/facts.json` says what the run is called and carries from the start; the draft, then
the result, has all else; `<server>/` beside the facts says what that server has of it (flows/tracking/sent.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from artifacts.store import Store
from artifacts.syncing import write_whole
from flows.tracking.compare_links import Place
from flows.tracking.headlines import stage_params
from flows.tracking.mlflow_server import KEY_TAG, USES_TAG, MlflowServer, source_tags
from flows.tracking.notes import NOTE_TAG, stage_note, with_version
from flows.tracking.points import send_points
from flows.tracking.pulse import PULSE_TAG, first_beat, taken
from flows.tracking.sent import Sent
from flows.tracking.stage_facts import data_of, flat, log_data, log_params, read_by
from flows.tracking.stage_result import send_result
from pipelines.plan import Plan, Planned
from tasks.settings import Optimizing

PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class TrackedStage:
    """One key's run."""

    store: Store
    uses: str
    key: str

    @property
    def folder(self) -> Path:
        """Where its facts are, and what the servers have."""
        return self.store.home / "tracking" / self.result.name

    @property
    def result(self) -> Path:
        return self.store.folder(self.uses, self.key)

    @property
    def draft(self) -> Path:
        return self.store.draft(self.uses, self.key)

    @property
    def facts(self) -> dict[str, Any] | None:
        """What `note` wrote; None for a stage that was never noted here."""
        path = self.folder / "facts.json"
        return json.loads(path.read_text()) if path.exists() else None

    def note(self, planned: Planned, plan: Plan, run_id: str, ui: str | None = None) -> None:
        """Write down what the run is to carry. A run that goes on stays under the parent that it began under."""
        for sent in self.folder.glob("*/"):
            Sent(sent).unmark("complete")
        if self.facts is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = {each.key: each.label for each in plan.stages}
        inputs = {
            name: {"name": labels[artifact.key], "key": artifact.key, "uses": plan[labels[artifact.key]].uses}
            for name, artifact in planned.stage.bound().items()
        }
        facts = {
            "uses": self.uses, "key": self.key, "name": planned.label, "experiment": plan.recipe.name,
            "run_id": run_id, "started": datetime.now(UTC).isoformat(), "ui": ui, "inputs": inputs,
            "params": {**flat(planned.stage.settings()), **stage_params(planned, plan)},
            "tags": {
                "align.makes": planned.handle.kind, **source_tags(f"{plan.recipe.path.name}:{planned.label}"),
                **({"align.trains": "yes"} if isinstance(planned.stage, Optimizing) else {}),
            },
            "data": [*read_by(planned), *data_of(planned, labels)],
        }  # fmt: skip
        write_whole(self.folder / "facts.json", json.dumps(facts))

    def sent(self, server: str) -> Sent:
        """What a server has of it."""
        return Sent(self.folder / server)

    def send(self, server: MlflowServer, parent: str | None, status: str) -> bool:
        """All that the server lacks, and the status that the run has now; raises MlflowException or OSError.

        False for a stage that someone else is sending just now.
        """
        sent = self.sent(server.name)
        with sent.held() as free:
            if not free or sent.has("complete") or self.facts is None:
                return free
            run = self._open(server, sent, parent)
            if finished := status == "FINISHED" and self.result.exists():
                send_points(server.client, run, self.result, sent)
                send_result(server.client, run, self.result)
                self._describe(server, run)
            else:
                send_points(server.client, run, self.draft, sent)
            if server.client.get_run(run).info.status != status:
                self._set_status(server.client, run, status)
            if finished:
                sent.mark("complete")
        return True

    def take_over(self, server: MlflowServer, run: str) -> None:
        """Go on in a run that another machine began."""
        sent = self.sent(server.name)
        sent.made(run)
        sent.mark("described")

    def _open(self, server: MlflowServer, sent: Sent, parent: str | None) -> str:
        facts = self.facts
        assert facts is not None
        own = {KEY_TAG: self.key, "align.run_id": facts["run_id"], "align.kind": "stage"}
        more = {USES_TAG: self.uses, PARENT_TAG: parent or "", **facts.get("tags", {})}
        if not server.is_own:
            more[PULSE_TAG] = first_beat(server.home)
            if sent.run_id is not None and server.has(sent.run_id) and taken(server, sent.run_id):
                sent.made(server.make(facts["experiment"], facts["name"], {**own, **more}, facts.get("started")))
        new = not sent.has("described")
        run = open_run(server, sent, facts, own, more)
        if new:
            self._describe(server, run)
        return run

    def _describe(self, server: MlflowServer, run: str) -> None:
        """The run's description, with the files that it has by now."""
        facts, client = self.facts or {}, server.client
        inputs = {one["key"]: one["uses"] for one in facts.get("inputs", {}).values()}

        def find(key: str) -> Place | None:
            own = TrackedStage(self.store, inputs[key], key).sent(server.name).run_id
            return server.place(own) if own is not None else server.place_of(key)

        place = Place(run, server.experiment(facts["experiment"]))
        parent = server.place(client.get_run(run).data.tags.get(PARENT_TAG) or None)
        files = [file.path for folder in ("", "output", "stage") for file in client.list_artifacts(run, folder)]
        client.set_tag(run, NOTE_TAG, with_version(client, run, stage_note(place, files, parent, find, facts)))

    def _set_status(self, client: MlflowClient, run: str, status: str) -> None:
        """With the time at which the last file was written, which may be long ago."""
        if status == "RUNNING":
            client.update_run(run, status=status)
            return
        ends = [folder / name for folder in (self.result, self.draft) for name in ("manifest.json", "log.txt")]
        at = max((path.stat().st_mtime for path in ends if path.exists()), default=time.time())
        if started := (self.facts or {}).get("started"):
            at = max(at, datetime.fromisoformat(started).timestamp())
        client.set_terminated(run, status, end_time=int(at * 1000))


def open_run(
    server: MlflowServer, sent: Sent, facts: Mapping[str, Any], own: Mapping[str, str], more: Mapping[str, str]
) -> str:
    """The run with the tags `own`, made unless it is there, with its parameters and data sets."""
    run = sent.run_id
    if run is None or not server.has(run):
        # Whoever made it may have died before it was noted here.
        run = server.find(facts["experiment"], own) or server.make(
            facts["experiment"], facts["name"], {**own, **more}, facts.get("started")
        )
        sent.made(run)
    if not sent.has("described"):
        log_params(server.client, run, facts["params"])
        log_data(server.client, run, facts["data"])
        sent.mark("described")
    return run
