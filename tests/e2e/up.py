"""A home in which `align up` started its servers, as tests ask them what a person sees there."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.tracking.artifact_files import put_files
from flows.tracking.mlflow_server import MlflowServer
from tests.e2e.conftest import Answer, Shop
from tests.e2e.prefect_server import Prefect
from tests.e2e.servers import eventually

TINY = "pipelines/tiny.yaml"


def of_up(shop: Shop) -> list[psutil.Process]:
    """Everything that lives and was started by this home's `align up`, directly or not."""

    def ours(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            given = process.environ()
            return (
                given.get("ALIGN_HOME") == str(shop.home)
                and "ALIGN_UP" in given
                and process.status() != psutil.STATUS_ZOMBIE
            )
        return False

    return [process for process in psutil.process_iter() if ours(process)]


def logged_without_a_server(home: Path) -> str:
    """A run with a file, in the way and the place of runs without servers; its id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        server = MlflowServer.reach(home, "earlier")
    run = server.make("earlier", "before", {})
    (home / "note.txt").write_text("made before")
    put_files(server.client, run, home / "note.txt", "notes")
    return run


class Up:
    """A home whose servers are up, where the usual port of Prefect was taken."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.shop = Shop(folder)
        self.shop.environment |= environment
        self.before = logged_without_a_server(self.shop.home)
        with socket.socket() as somebody:
            with suppress(OSError):  # then it is somebody's already
                somebody.bind(("127.0.0.1", 4200))
                somebody.listen()
            self.first = self.shop.align("up", "--json")
        assert self.first.status == 0, self.first.err
        self.api = Prefect(self.shop.environment)
        self.api.api = self.first.json["prefect_api"]

    @property
    def status(self) -> Answer:
        return self.shop.align("up", "--status", "--json")

    def pids(self) -> dict[str, int]:
        found = self.status.json
        return {role: found[role]["pid"] for role in ("prefect", "mlflow", "serving")}

    def kill(self, role: str) -> None:
        os.kill(self.pids()[role], signal.SIGKILL)
        eventually(lambda: self.pids()[role] is None, 10)

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call(f"/flow_runs/{flow_run}")
        return found

    def trigger(self, name: str, **parameters: Any) -> str:
        """A flow run of a deployment, as Prefect's page starts one."""
        deployment = self.api.call(f"/deployments/name/{name}/{name}")["id"]
        made = self.api.call(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def shown(self, flow_run: str) -> dict[str, Any]:
        """What its page shows beside tasks and logs, by name."""
        asked = {"flow_runs": {"id": {"any_": [flow_run]}}}
        return {one["key"]: one["data"] for one in self.api.call("/artifacts/filter", asked)}

    def between(self, flow_run: str, one: str, other: str) -> float:
        """Seconds from a state of a flow run to another, the first of each name."""
        states = self.api.call(f"/flow_run_states/?flow_run_id={flow_run}")
        first, last = (
            next(datetime.fromisoformat(state["timestamp"]) for state in states if state["name"] == name)
            for name in (one, other)
        )
        return (last - first).total_seconds()

    def logged(self, flow_run: str) -> str:
        found = self.api.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
        return "\n".join(line["message"] for line in found)

    def end(self) -> None:
        self.shop.align("down")
        for process in of_up(self.shop):  # only if `down` did not
            process.kill()
