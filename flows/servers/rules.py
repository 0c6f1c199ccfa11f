"""Automations of the Prefect server that are ours: made once, renewed where they are to be others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore


def install(wanted: AutomationCore) -> None:
    """Make a rule, or renew it if it was another; Prefect's client tries again where its database is locked.

    One that is as it should be is left alone: with an update Prefect forgets the events that it has seen.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(wanted.name)
        if not found:
            client.create_automation(wanted)
            return
        for one in found[1:]:
            client.delete_automation(one.id)
        wanted.enabled = found[0].enabled  # whoever switched it off wants it off
        if _meaning(found[0]) != _meaning(wanted):
            client.update_automation(found[0].id, wanted)


def _meaning(rule: AutomationCore) -> dict[str, Any]:
    """What the server keeps of a rule, without the numbers that it gives."""
    return rule.model_dump(include={"description", "trigger", "actions"}, exclude={"trigger": {"id"}})
