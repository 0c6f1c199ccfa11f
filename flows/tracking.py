"""The only way to MLflow: a parent run per pipeline run, a child run per stage that ran, found again by its key.

Explicit run ids through MlflowClient. The server must answer at the start; once training has begun nothing here may
fail or slow it: points stay in `metrics.jsonl`, errors become a line in the log.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from artifacts.errors import UserError
from artifacts.manifest import Manifest
from flows.artifact_links import link_files
from flows.follow import Follower, log_table, numbers
from flows.watch import Watcher
from pipelines.curves import curves
from pipelines.plan import Plan, Planned

KEY_TAG, USES_TAG, PARENT_TAG, NOTE_TAG = "align.key", "align.uses", "mlflow.parentRunId", "mlflow.note.content"
TABLE_ROWS = 400


def client_for(home: Path) -> tuple[MlflowClient, str]:
    """A client of the server that the environment names, or else of the database under `home`; and its address."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri), uri


class Tracker:
    """MLflow for one pipeline run."""

    def __init__(self, client: MlflowClient, experiment: str, watcher: Watcher) -> None:
        self.client, self.experiment, self.watcher = client, experiment, watcher
        self.parent: str | None = None

    @classmethod
    def connect(cls, home: Path, name: str, watcher: Watcher) -> Tracker:
        """Reach the server and find or make the experiment; raises UserError within seconds if that can't be done."""
        client, uri = client_for(home)
        try:
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                return cls(client, experiment.experiment_id, watcher)
            place = None
            if uri.startswith("sqlite:"):
                place = (home / "mlflow" / quote(name, safe="")).as_uri()
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return cls(client, client.create_experiment(name, artifact_location=place, tags=tags), watcher)
        except MlflowException as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"MLflow at {uri} can't be used: {reason}; start it, or unset MLFLOW_TRACKING_URI to track in "
                f"{home / 'mlflow.db'}"
            ) from error

    def begin(self, plan: Plan, run_id: str, flow_run_id: str | None) -> None:
        """The parent run, with the recipe and the plan."""
        tags = {"align.run_id": run_id, "align.kind": "pipeline", "prefect.flow_run_id": flow_run_id or ""}
        self.parent = self.client.create_run(self.experiment, run_name=run_id, tags=tags).info.run_id
        self._params(self.parent, {"seed": plan.recipe.seed, "stages": ", ".join(p.label for p in plan.stages)})
        read = [dataset for planned in plan.stages for dataset in _read_by(planned)]
        if read:
            self.client.log_inputs(self.parent, read)
        self.text(plan.recipe.model_dump_json(indent=1, exclude={"path"}), "recipe.json")
        self.text(plan.recipe.path.read_text(), plan.recipe.path.name)
        self.text(json.dumps({p.label: p.payload for p in plan.stages}, indent=1, sort_keys=True), "plan.json")

    def run_of(self, key: str) -> str | None:
        """The run of the stage with this key, in whichever experiment it was first made."""
        try:
            experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
            found = self.client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        except MlflowException as error:
            self._lost(error)
            return None
        return found[0].info.run_id if found else None

    @contextmanager
    def following(self, planned: Planned, draft: Path) -> Iterator[str | None]:
        """The stage's run, the same one when it goes on, fed from the draft while the stage works."""
        run = self._open(planned, draft)
        if run is None:
            yield None
            return
        follower = Follower(self.client, run, draft, self.watcher)
        follower.start()
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            follower.stop()
            if status != "FINISHED":
                self._quietly(lambda: self.client.set_terminated(run, status))

    def _open(self, planned: Planned, draft: Path) -> str | None:
        known = draft / "mlflow_run_id"
        try:
            run = known.read_text() if known.exists() else None
            if run is not None:
                self.client.update_run(run, status="RUNNING")
                return run
            tags = {
                KEY_TAG: planned.key, PARENT_TAG: self.parent or "", "align.kind": "stage",
                USES_TAG: planned.uses,
            }  # fmt: skip
            run = self.client.create_run(self.experiment, run_name=planned.label, tags=tags).info.run_id
            self._params(run, {**flat(planned.stage.settings()), "uses": planned.uses})
            self._data(run, planned)
            known.write_text(run)
        except MlflowException as error:
            self._lost(error)
            return None
        return str(run)

    def _data(self, run: str, planned: Planned) -> None:
        """The data sets behind a stage: those it reads itself, and the data stages among its inputs."""
        found = _read_by(planned)
        for name, artifact in planned.stage.bound().items():
            if hasattr(artifact, "train_rows"):
                found.append(_dataset(f"{name}-{artifact.key[:8]}", artifact.key, str(artifact.path)))
        if found:
            self.client.log_inputs(run, found)

    def finish(self, run: str | None, planned: Planned, manifest: Manifest, folder: Path) -> None:
        """Headline metrics, output, manifest and metric history of a committed stage; its run is FINISHED."""
        if run is None:
            return
        self._quietly(lambda: self._finish(run, manifest, folder))

    def _finish(self, run: str, manifest: Manifest, folder: Path) -> None:
        step, last = last_point(folder / "metrics.jsonl")
        now = int(time.time() * 1000)
        new = {name: value for name, value in numbers(manifest.metrics).items() if last.get(name) != value}
        self.client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in new.items()],
            tags=[RunTag("align.digest", manifest.digest), RunTag("align.path", str(folder / "out"))],
        )
        link_files(self.client, run, folder / "out", "output")
        for name in ("manifest.json", "metrics.jsonl", "samples.jsonl", "key.json", "log.txt"):
            if (folder / name).exists():
                link_files(self.client, run, folder / name, "stage")
        if (figure := curves(folder / "metrics.jsonl")) is not None:
            self.client.log_figure(run, figure, "curves.png")
        completions = folder / "out" / "completions.jsonl"
        if completions.exists():
            self.table(run, completions)
        self.client.set_terminated(run, "FINISHED")

    def table(self, run: str, completions: Path) -> None:
        """Completions as a table that MLflow shows."""
        rows = [json.loads(line) for line in completions.read_text().splitlines()[:TABLE_ROWS]]
        shown = [name for name in ("prompt", "completion", "passed", "score", "truncated") if name in rows[0]]
        log_table(self.client, run, [{name: row.get(name) for name in shown} for row in rows], "completions.json")

    def text(self, text: str, name: str) -> None:
        """A text file on the parent run."""
        if (parent := self.parent) is not None:
            self._quietly(lambda: self.client.log_text(parent, text, name))

    def figure(self, figure: Any, name: str) -> None:
        """A picture on the parent run."""
        if (parent := self.parent) is not None:
            self._quietly(lambda: self.client.log_figure(parent, figure, name))

    def end(self, note: str, metrics: Mapping[str, float], links: Sequence[tuple[str, str]], failed: bool) -> None:
        """Close the parent: its description, copies of the headline metrics, and a tag for each stage's run."""
        if (parent := self.parent) is None:
            return

        def close() -> None:
            now = int(time.time() * 1000)
            tags = [RunTag(NOTE_TAG, note[:7900])]
            tags += [RunTag(f"align.stage.{label}", run) for label, run in links]
            points = [Metric(name, value, now, 0) for name, value in numbers(metrics).items()]
            self.client.log_batch(parent, metrics=points, tags=tags)
            self.client.set_terminated(parent, "FAILED" if failed else "FINISHED")

        self._quietly(close)

    def abandon(self) -> None:
        """Mark the parent run as killed."""
        if (parent := self.parent) is not None:
            self._quietly(lambda: self.client.set_terminated(parent, "KILLED"))

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        entries = [Param(name, str(value)[:6000]) for name, value in params.items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run, params=entries[start : start + 100])

    def _quietly(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (MlflowException, OSError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self.watcher.line("mlflow", f"not recorded: {str(error).splitlines()[0][:200]}")


def _read_by(planned: Planned) -> list[DatasetInput]:
    """What a stage reads from outside the store, with our digest: MLflow's own looks at the first rows only."""
    content = planned.payload["content"]
    return [
        _dataset(f"{planned.label}.{name}", str(value["sha256"]), str(getattr(planned.stage, name)))
        for name, value in content.items()
        if isinstance(value, Mapping) and "sha256" in value
    ]


def _dataset(name: str, digest: str, source: str) -> DatasetInput:
    entity = Dataset(name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": source}))
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


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
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    points = [json.loads(line) for line in lines]
    last: dict[str, float] = {}
    for point in points:
        last |= point["metrics"]
    return (int(points[-1]["step"]) if points else 0), last
