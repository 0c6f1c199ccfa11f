"""A rule of the Prefect server: a flow run whose process was killed does not stay `Running` for ever.

Flow runs send heartbeats; nothing in Prefect acts on their absence until an automation does.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from artifacts.errors import ServerError

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

NAME = "align: killed flow runs are Crashed"
MISSED = 4
"""Heartbeats that must be missing, so that a busy machine costs no healthy run its state. One that sleeps does, until
the run is awake too and says so (flows/running/own_state.py)."""
TAKEN_FOR_DEAD = "no sign of life for"
"""How the message begins of a run that the rule has found."""
ENDS = (
    "Completed", "Promoted", "Kept", "Unchanged", "Failed", "TimedOut", "Cancelled", "Crashed", "Cancelling", "Paused",
    "Suspended", "AwaitingRetry",
)  # fmt: skip
"""Names of states in which no heartbeat is missed; a retraining that is completed says what became of it."""
LEFT = "align.flow-run.left"
"""What the process of a flow run that is to pause says last: Prefect suspends it while its heart still beats."""
PATIENCE_S = 300.0
"""As long as `align up` waits for all of it."""


def wait_for_prefect() -> None:
    """Until the server that PREFECT_API_URL names answers; raises ServerError if it does not."""
    from prefect.client.orchestration import get_client

    deadline = time.monotonic() + PATIENCE_S
    while True:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
        if problem is None:
            return
        if time.monotonic() > deadline:
            raise ServerError(f"Prefect does not answer: {problem}")
        time.sleep(0.5)


def crash_rule() -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.settings import get_current_settings

    seconds = get_current_settings().flows.heartbeat_frequency or 60
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=NAME,
        description="Installed by `align up`. Switch it off here if it takes a run for dead that is not.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": "align*"}),
            for_each={"prefect.resource.id"},
            after={heartbeat},
            expect={heartbeat, LEFT, *(f"prefect.flow-run.{end}" for end in ENDS)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED * seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name=None,
                message=f"{TAKEN_FOR_DEAD} {MISSED * seconds} seconds: its process was killed",
            )
        ],
    )
