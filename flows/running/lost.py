"""Runs that Prefect or MLflow would show as running for ever: their process is gone, or could not say how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.addresses import reason
from flows.records import RunRecord, load_records
from flows.tracking.tracked_run import TrackedRun

if TYPE_CHECKING:
    from prefect import State
    from prefect.client.orchestration import SyncPrefectClient

TOLD = "prefect_told"


def end_all_lost(home: Path) -> list[RunRecord]:
    """Every run under `home` whose process is gone without a word, ended."""
    return [record for record in load_records(home) if end_lost(home, record)]


def end_lost(home: Path, record: RunRecord) -> bool:
    """Whether this run's process is gone without a word: it is KILLED then, and MLflow hears it next."""
    run = TrackedRun(home, record.run_id)
    if not run.lost():
        return False
    run.end("KILLED", ended=run.last_said)
    return True


def tell_of_all(home: Path, say: Callable[[str], None]) -> None:
    """End every lost run, and tell Prefect of all that it does not know the end of."""
    end_all_lost(home)
    tell_prefect(home, load_records(home), say)


def tell_prefect(home: Path, records: Iterable[RunRecord], say: Callable[[str], None]) -> None:
    """How these runs ended, where Prefect's server takes them for running ones; one that does not answer is asked once,
    and `say` hears why."""
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectException
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        return
    try:
        with get_client(sync_client=True) as client:
            for record in records:
                with suppress(ObjectNotFound):  # another server's, or deleted
                    _tell(client, home, record)
    except (PrefectException, HTTPError) as error:
        say(f"Prefect can't be told how earlier runs ended: {reason(error)}; `align sync` tries again")


def _tell(client: SyncPrefectClient, home: Path, record: RunRecord) -> None:
    run = TrackedRun(home, record.run_id)
    facts = run.facts
    if facts is None or facts.get(TOLD) or record.flow_run_id is None or run.live() or facts["status"] == "RUNNING":
        return
    flow_run = UUID(record.flow_run_id)
    state = client.read_flow_run(flow_run).state
    if (end := _end(state, facts)) is not None:
        client.set_flow_run_state(flow_run, end, force=True)
    if end is not None or (state is not None and state.is_final()):
        run.end(facts["status"], **{TOLD: True})


def _end(state: State | None, facts: Mapping[str, Any]) -> State | None:
    """The state that a flow run should be in, if it is in one that only its process could end, or was taken for dead.

    One that is suspended, or about to be retried, is not; nor is one that has been running since later than this.
    """
    from prefect.states import Cancelled, Completed, Crashed, Failed

    killed = "its process was killed"
    if state is not None and state.is_cancelling():
        return Completed() if facts["status"] == "FINISHED" else Cancelled(message=killed)
    if state is not None and state.is_crashed():  # by the rule, while Prefect could not be told that it had ended well
        return Completed() if facts["status"] == "FINISHED" else None
    if state is None or (state.is_running() and state.timestamp.timestamp() <= facts.get("began", inf)):
        return {"FINISHED": Completed(), "FAILED": Failed(), "KILLED": Crashed(message=killed)}[facts["status"]]
    return None
