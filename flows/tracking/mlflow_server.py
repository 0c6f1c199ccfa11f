"""The MLflow server that the environment names, or the database under `$ALIGN_HOME`: reached within seconds or not."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList
from mlflow.tracking import MlflowClient

from artifacts.errors import UserError
from artifacts.locking import held
from flows.addresses import reason, without_secrets
from flows.servers.asking import Trouble, mlflow_version
from flows.servers.passwords import mlflow_password
from flows.servers.state import own_mlflow
from flows.servers.versions import does_not_fit
from flows.tracking.compare_links import Place

Found = TypeVar("Found")
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
MARK_TAG = "align.server"
KEY_TAG, USES_TAG, DIGEST_TAG = "align.key", "align.uses", "align.digest"


class MlflowServer:
    """A server and our client of it. Explicit run ids, never the current run that the `mlflow` module keeps."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
        self.is_own = self.uri.startswith("sqlite:") or self.uri == own_mlflow(home)
        """Whether it is the database of this home, by itself or served by `align up`: what it knows, the store has."""
        self.shown = without_secrets(self.uri)
        """The address for people: in messages, logs and links."""
        with self._alone():
            self.client = MlflowClient(tracking_uri=self.uri)  # makes the database
        self.name = ""
        """How folders under `$ALIGN_HOME` tell servers apart: by a mark that each database is given, not by address."""
        self._experiments: dict[str, str] = {}

    @classmethod
    def reach(cls, home: Path, *experiments: str) -> MlflowServer:
        """The server, with these experiments; raises UserError within seconds if it does not answer."""
        server = cls(home)
        try:
            with server._alone():
                for name in experiments:
                    server.experiment(name)
                server.name = server._mark()
        except MlflowException as error:
            if error.error_code in REFUSED:
                raise UserError(f"MLflow at {server.shown} {Trouble.PASSWORD}; {mlflow_password().do}") from error
            why, do = reason(error), "start it"
            if (strange := server._version_trouble()) is not None:
                why, do = f"{why}; its version may be why: {strange}", "start one of such a version there"
            without = "go on with --offline-tracking and send later with `align sync`, or " if experiments else ""
            raise UserError(
                f"MLflow at {server.shown} can't be used: {why}; {do}, or {without}unset "
                f"MLFLOW_TRACKING_URI to use {home / 'mlflow.db'}"
            ) from error
        return server

    def _version_trouble(self) -> str | None:
        version = mlflow_version(self.uri.rstrip("/"), mlflow_password()) if self.uri.startswith("http") else None
        return does_not_fit("mlflow", version) if version is not None else None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """For what is asked outside a run: raises UserError where the server refuses, or is gone by now."""
        try:
            yield
        except MlflowException as error:
            raise UserError(f"MLflow at {self.shown}: {reason(error)}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes that make this home's database at once would spoil it for each other."""
        with held(self.home / "locks" / "mlflow", wait=True) if self.is_own else nullcontext():
            yield

    def _mark(self) -> str:
        """Its mark, a tag of the experiment that every server has, whoever asks first."""
        default = self.client.get_experiment("0")
        if MARK_TAG not in default.tags:
            self.client.set_experiment_tag("0", MARK_TAG, f"server-{secrets.token_hex(6)}")
            default = self.client.get_experiment("0")
        return str(default.tags[MARK_TAG])

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made if it is not there."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            self._experiments[name] = self._make(name) if found is None else str(found.experiment_id)
        return self._experiments[name]

    def _make(self, name: str) -> str:
        place = (self.home / "mlflow" / quote(name, safe="")).as_uri() if self.is_own else None
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(name, artifact_location=place, tags=tags))
        except MlflowException:
            if (found := self.client.get_experiment_by_name(name)) is None:  # else someone was quicker
                raise
            return str(found.experiment_id)

    def run_of(self, key: str, digest: str | None = None) -> str | None:
        """The run of the stage with this key, in whichever experiment it was first made.

        With `digest`, a finished one that has these bytes among its artifacts.
        """
        place = self.place_of(key, digest)
        return place.run if place else None

    def place_of(self, key: str, digest: str | None = None) -> Place | None:
        """That run and its experiment."""
        wanted = f"tags.`{KEY_TAG}` = '{key}'"
        if digest is not None:
            wanted += f" and tags.`{DIGEST_TAG}` = '{digest}' and attributes.status = 'FINISHED'"
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = self.client.search_runs(experiments, wanted, max_results=1)
        return Place(str(found[0].info.run_id), str(found[0].info.experiment_id)) if found else None

    def place(self, run: str | None) -> Place | None:
        """A run and the experiment that it is in; None if it does not have it, or no longer."""
        if run is None or not self.has(run):
            return None
        return Place(run, str(self.client.get_run(run).info.experiment_id))

    def find(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """A run with all of these tags."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self.client.search_runs([self.experiment(experiment)], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def make(self, experiment: str, name: str, tags: Mapping[str, str], started: str | None = None) -> str:
        """A new run; `started` as ISO 8601 has it, by default now."""
        at = None if started is None else int(datetime.fromisoformat(started).timestamp() * 1000)
        made = self.client.create_run(self.experiment(experiment), start_time=at, run_name=name, tags=dict(tags))
        return str(made.info.run_id)

    def has(self, run: str) -> bool:
        """Whether the server still has this run: its database may be another one by now."""
        try:
            return self.client.get_run(run).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise


def every(search: Callable[..., PagedList[Found]]) -> Iterator[Found]:
    """All that a search of MLflow's client finds, page after page."""
    page = search()
    yield from page
    while page.token:
        page = search(page_token=page.token)
        yield from page


def source_tags(source: str) -> dict[str, str]:
    """What MLflow's tables show as a run's source."""
    return {"mlflow.source.name": source, "mlflow.source.type": "LOCAL"}
