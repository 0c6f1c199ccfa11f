"""`align.champion.changed`: the event on which anything can be hung in Prefect's automations."""

from __future__ import annotations

from contextlib import suppress

from flows.servers.state import named_prefect

CHAMPION_CHANGED = "align.champion.changed"


def tell_champion(model: str, champion: str, previous: str | None, by: str) -> None:
    """Emit it, if there is a Prefect server; one that does not answer costs nobody the promotion.

    Not by Prefect's own `emit_event`, whose thread would keep a command alive for minutes where the server is gone.
    """
    if not named_prefect():
        return
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.events import Event, RelatedResource, Resource
    from prefect.exceptions import PrefectException
    from prefect.runtime import flow_run

    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
    event = Event(
        event=CHAMPION_CHANGED,
        resource=Resource({"prefect.resource.id": f"align.model.{model}", "prefect.resource.name": model}),
        related=[RelatedResource(run)] if flow_run.id else [],
        payload={"model": model, "champion": champion, "previous": previous, "by": by},
    )
    with suppress(PrefectException, HTTPError), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
