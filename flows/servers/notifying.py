"""What the Prefect server tells people: a flow run of ours failed or never started, a model has a new champion.

Installed only if `ALIGN_NOTIFY_BLOCK` names a block that is there, such as `slack-webhook/team`: whoever made it in
Prefect's pages put its secret there, and it stays there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from artifacts.errors import UserError
from flows.registry.champion_event import CHAMPION_CHANGED
from flows.servers.rules import install

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.events.actions import CallWebhook, SendNotification
    from prefect.events.schemas.automations import AutomationCore

BLOCK = "ALIGN_NOTIFY_BLOCK"
FAILED, CHANGED = "align: say that a flow run failed", "align: say that a model has a new champion"
WEBHOOK = "webhook"
"""The type of block that is no notification: it gets what is said as the body of a request."""
RUN = (
    "{{ flow.name }} {{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }} "
    "{{ flow_run|ui_url or '' }}"
)
MODEL = (
    "{{ event.payload.model }}: version {{ event.payload.champion }} is champion, version "
    "{{ event.payload.previous or 'none' }} was before ({{ event.payload.by }})"
)


def install_notifications() -> None:
    """Make the rules, or renew them, if they are asked for; raises UserError if there is no such block."""
    if named := os.environ.get(BLOCK, ""):
        for rule in notifications(*_block(named)):
            install(rule)


def telling(text: str) -> list[SendNotification | CallWebhook]:
    """What another rule does to tell them too, if that is asked for; raises UserError if there is no such block."""
    named = os.environ.get(BLOCK, "")
    return [_say(*_block(named), text)] if named else []


def _block(named: str) -> tuple[str, UUID]:
    """Its type and id."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, _, name = named.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return kind, client.read_block_document_by_name(name, kind).id
        except ObjectNotFound as error:
            raise UserError(
                f"{BLOCK}: wanted TYPE/NAME of a block in Prefect, such as slack-webhook/team, got {named!r}; make it "
                "in the page Blocks (`align up` without the variable shows that), or leave the variable out"
            ) from error


def notifications(kind: str, block: UUID) -> list[AutomationCore]:
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    about = f"Installed since {BLOCK} was set. Switch it off here, or change what it says in a copy."
    failed = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": "align*"}),
        expect={f"prefect.flow-run.{end}" for end in ("Failed", "Crashed", "TimedOut")},
        posture=Posture.Reactive,
        threshold=1,
    )
    changed = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "align.model.*"}),
        expect={CHAMPION_CHANGED},
        posture=Posture.Reactive,
        threshold=1,
    )
    return [
        AutomationCore(name=FAILED, description=about, trigger=failed, actions=[_say(kind, block, RUN)]),
        AutomationCore(name=CHANGED, description=about, trigger=changed, actions=[_say(kind, block, MODEL)]),
    ]


def _say(kind: str, block: UUID, text: str) -> SendNotification | CallWebhook:
    from prefect.events.actions import CallWebhook, SendNotification

    if kind == WEBHOOK:
        return CallWebhook(block_document_id=block, payload=text)
    return SendNotification(block_document_id=block, subject="alignflow", body=text)
