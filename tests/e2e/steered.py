"""What a person sees of a flow run, and the buttons: Cancel, Pause, Resume and Retry, by what they send.

What each sends was read from the pages of Prefect 3.8: the state below, with `force`; Resume is an address of its own.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
from mlflow.tracking import MlflowClient

from flows.servers.crash_rule import LEFT
from tests.e2e.servers import eventually
from tests.e2e.up import Up, of_up

SECONDS = 1800
"""For what takes a minute on a machine with nothing else to do."""
HEARTBEAT = "prefect.flow-run.heartbeat"
LIMIT = f"/v2/concurrency_limits/{socket.gethostname()}-slot-one"


class Steered(Up):
    """What a person sees of a flow run, and the buttons."""

    def press(self, flow_run: str, kind: str, name: str, **more: Any) -> None:
        body = {"state": {"type": kind, "name": name, **more}, "force": True}
        assert self.api.call(f"/flow_runs/{flow_run}/set_state", body)["status"] in ("ACCEPT", "REJECT")

    def cancel(self, flow_run: str) -> None:
        self.press(flow_run, "CANCELLING", "Cancelling")

    def pause(self, flow_run: str) -> None:
        until = (datetime.now(UTC) + timedelta(seconds=SECONDS)).isoformat()
        details = {"pause_timeout": until, "pause_reschedule": True, "deferred": False, "untrackable_result": False}
        self.press(flow_run, "PAUSED", "Suspended", state_details=details)

    def resume(self, flow_run: str) -> None:
        assert self.api.call(f"/flow_runs/{flow_run}/resume", {})["status"] == "ACCEPT"

    def retry(self, flow_run: str) -> None:
        self.press(flow_run, "SCHEDULED", "AwaitingRetry", message="Retry from the UI")

    def state(self, flow_run: str) -> str:
        return str(self.flow_run(flow_run)["state_name"])

    def until(self, flow_run: str, state: str) -> None:
        eventually(lambda: self.state(flow_run) == state, SECONDS)

    def tasks(self, flow_run: str) -> list[tuple[str, str]]:
        """Stages and the states of their tasks, in the order in which they began."""
        found = self.api.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        return [(task["name"].rsplit("-", 1)[0], task["state_name"]) for task in sorted(found, key=_start)]

    def logs(self, flow_run: str) -> str:
        found = self.api.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
        return "\n".join(line["message"] for line in found)

    def last_sign(self, flow_run: str) -> str:
        """The last event by which the rule for killed flow runs judges it."""
        wanted = {"resource": {"id": [f"prefect.flow-run.{flow_run}"]}, "event": {"name": [HEARTBEAT, LEFT]}}
        found = self.api.call("/events/filter", {"filter": {**wanted, "order": "DESC"}})
        return str(found["events"][0]["event"])

    def trainers(self) -> list[psutil.Process]:
        """Processes that train."""
        return [one for one in of_up(self.shop) if "tasks" in words_of(one)]

    def flows(self) -> list[psutil.Process]:
        """Whatever a served flow run is made of."""
        return psutil.Process(self.pids()["serving"]).children(recursive=True)

    def record(self, flow_run: str) -> dict[str, Any]:
        """The only run that is of this flow run."""
        found = [one for one in self.shop.align("runs", "--json").json if one["flow_run_id"] == flow_run]
        assert len(found) == 1
        return dict(found[0])

    def in_mlflow(self, flow_run: str) -> dict[str, str]:
        """The states there of the run and of those of its stages that it began, by name."""
        client = MlflowClient(self.first.json["mlflow"]["url"])
        parent = client.get_run(self.record(flow_run)["mlflow_run_id"])
        under = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
        children = client.search_runs([parent.info.experiment_id], under)
        return {"": parent.info.status, **{one.info.run_name: one.info.status for one in children}}

    def until_it_trains(self, uses: str = "sft") -> None:
        """With something to go on from."""
        eventually(lambda: self.shop.checkpoints(uses) and self.trainers(), SECONDS)


def _start(task: dict[str, Any]) -> str:
    return str(task["start_time"] or "")


def words_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []
