"""A stage's run in MLflow, made from what its folders hold: now, or later, or again.

`$ALIGN_HOME/tracking/<uses>-<key>/facts.json` says what the run is called and carries from the start; the draft, then
the result, has all else; `<server>/` beside the facts says what that server has of it (flows/sent.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from artifacts.jsonl import read_jsonl
from artifacts.manifest import Manifest
from artifacts.store import Store
from artifacts.syncing import write_whole
from flows.artifact_files import STAGE_FILES, put_files
from flows.mlflow_server import DIGEST_TAG, KEY_TAG, USES_TAG, MlflowServer
from flows.points import accepted, log_table, numbers, send_points
from flows.sent import Sent
from pipelines.curves import curves
from pipelines.plan import Planned

PARENT_TAG = "mlflow.parentRunId"
TABLE_ROWS = 400


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

    def note(self, planned: Planned, experiment: str, run_id: str) -> None:
        """Write down what the run is to carry. A run that goes on stays under the parent that it began under."""
        for sent in self.folder.glob("*/"):
            Sent(sent).unmark("complete")
        if self.facts is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "uses": self.uses, "key": self.key, "name": planned.label, "experiment": experiment, "run_id": run_id,
            "params": {**flat(planned.stage.settings()), "uses": planned.uses},
            "data": [*read_by(planned), *_data_stages(planned)],
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
            if status == "FINISHED" and self.result.exists():
                send_points(server.client, run, self.result, sent)
                _send_result(server.client, run, self.result)
                sent.mark("complete")
            else:
                send_points(server.client, run, self.draft, sent)
            if server.client.get_run(run).info.status != status:
                _set_status(server.client, run, status)
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
        more = {USES_TAG: self.uses, PARENT_TAG: parent or ""}
        return open_run(server, sent, facts, own, more)


def open_run(
    server: MlflowServer, sent: Sent, facts: Mapping[str, Any], own: Mapping[str, str], more: Mapping[str, str]
) -> str:
    """The run with the tags `own`, made unless it is there, with its parameters and data sets."""
    run = sent.run_id
    if run is None or not server.has(run):
        # Whoever made it may have died before it was noted here.
        run = server.find(facts["experiment"], own) or server.make(facts["experiment"], facts["name"], {**own, **more})
        sent.made(run)
    if not sent.has("described"):
        log_params(server.client, run, facts["params"])
        log_data(server.client, run, facts["data"])
        sent.mark("described")
    return run


def _set_status(client: MlflowClient, run: str, status: str) -> None:
    if status == "RUNNING":
        client.update_run(run, status=status)
    else:
        client.set_terminated(run, status)


def _send_result(client: MlflowClient, run: str, folder: Path) -> None:
    """Headline metrics, output, manifest and metric history."""
    manifest = Manifest.read(folder)
    step, last = last_point(folder / "metrics.jsonl")
    made = int((folder / "manifest.json").stat().st_mtime * 1000)
    new = {name: value for name, value in numbers(manifest.metrics).items() if last.get(name) != value}
    client.log_batch(
        run,
        metrics=[Metric(name, value, made, step) for name, value in new.items()],
        tags=[RunTag(DIGEST_TAG, manifest.digest), RunTag("align.path", str(folder / "out"))],
    )
    put_files(client, run, folder / "out", "output")
    for name in STAGE_FILES:
        if (folder / name).exists():
            put_files(client, run, folder / name, "stage")
    if (figure := curves(folder / "metrics.jsonl")) is not None:
        client.log_figure(run, figure, "curves.png")
    completions = folder / "out" / "completions.jsonl"
    if completions.exists():
        rows = read_jsonl(completions)[:TABLE_ROWS]
        shown = [name for name in ("prompt", "completion", "passed", "score", "truncated") if name in rows[0]]
        log_table(client, run, [{name: row.get(name) for name in shown} for row in rows], "completions.json")


def read_by(planned: Planned) -> list[dict[str, str]]:
    """What a stage reads from outside the store, with our digest: MLflow's own looks at the first rows only."""
    return [
        {"name": f"{planned.label}.{name}", "digest": value["sha256"], "source": str(getattr(planned.stage, name))}
        for name, value in planned.payload["content"].items()
        if isinstance(value, Mapping) and "sha256" in value
    ]


def _data_stages(planned: Planned) -> list[dict[str, str]]:
    return [
        {"name": f"{name}-{artifact.key[:8]}", "digest": artifact.key, "source": str(artifact.path)}
        for name, artifact in planned.stage.bound().items()
        if hasattr(artifact, "train_rows")
    ]


def log_params(client: MlflowClient, run: str, params: Mapping[str, Any]) -> None:
    """Parameters, however many."""
    entries = [Param(accepted(name), str(value)[:6000]) for name, value in params.items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run, params=entries[start : start + 100])


def log_data(client: MlflowClient, run: str, data: list[dict[str, str]]) -> None:
    """Data sets by name, digest and source."""
    inputs = []
    for one in data:
        source = json.dumps({"uri": one["source"]})
        dataset = Dataset(name=one["name"], digest=one["digest"][:36], source_type="local", source=source)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]))
    if inputs:
        client.log_inputs(run, inputs)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `lora.rank`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def last_point(metrics: Path) -> tuple[int, dict[str, float]]:
    """The last step, so that headline values count as the latest, and what each metric was when it was last logged."""
    points = read_jsonl(metrics) if metrics.exists() else []
    last: dict[str, float] = {}
    for point in points:
        last |= point["metrics"]
    return (int(points[-1]["step"]) if points else 0), last
