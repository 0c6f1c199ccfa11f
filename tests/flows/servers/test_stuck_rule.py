"""Flow runs that a worker has taken up and that never start: which events the rule waits for, and what it then does."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.states import InfrastructurePending, Pending

from flows.deployments import serving
from flows.servers.crash_rule import ENDS
from flows.servers.stuck_rule import NAME, STARTS_WITHIN_S, stuck_rule

TRIGGER = EventTrigger.model_validate(stuck_rule().trigger.model_dump(mode="json"))
"""As the server has it."""


def event(name: str, flow: str = "align-dpo") -> ReceivedEvent:
    """What the server says of a flow run."""
    related = {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow", "prefect.resource.name": flow}
    return ReceivedEvent(
        occurred=datetime.now(UTC), event=f"prefect.flow-run.{name}", id=uuid4(), related=[related],
        resource={"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
    )  # fmt: skip


@pytest.mark.parametrize("state", [Pending(), InfrastructurePending()])
def test_it_watches_from_when_a_worker_or_kubernetes_has_the_run(state):
    found = event(state.name)
    assert TRIGGER.covers(found) and TRIGGER.starts_after(found.event)
    assert TRIGGER.expects(found.event)  # or the second of these would not begin the time anew
    assert not TRIGGER.covers(event(state.name, flow="somebody-elses"))


@pytest.mark.parametrize("name", ["Running", "Retrying", "heartbeat", *ENDS])
def test_whatever_comes_next_ends_the_watch(name):
    assert TRIGGER.covers(event(name)) and TRIGGER.expects(f"prefect.flow-run.{name}")
    assert not TRIGGER.starts_after(f"prefect.flow-run.{name}")


def test_a_run_that_did_not_start_frees_its_place_and_its_pod_goes():
    """A worker deletes the jobs of runs that are Cancelling; of one that is Crashed the pod would start some day."""
    assert (TRIGGER.within.total_seconds(), TRIGGER.threshold, TRIGGER.for_each) == (
        STARTS_WITHIN_S, 1, {"prefect.resource.id"},
    )  # fmt: skip
    (action,) = stuck_rule().actions
    assert action.state == StateType.CANCELLING and action.message.startswith("did not start within 30 minutes")


def test_it_is_installed_with_the_others(monkeypatch):
    installed = []
    monkeypatch.setattr("flows.servers.rules.install", installed.append)
    monkeypatch.delenv("ALIGN_NOTIFY_BLOCK", raising=False)
    serving.install_rules()
    assert NAME in [rule.name for rule in installed] and len(installed) == 2
