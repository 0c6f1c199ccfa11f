"""Slots as a Prefect server shows them, under its concurrency limits. The guard is the lock, flows/running/slots.py.

A lease that is not renewed lets go of its slot there within a minute, so that a killed run is not shown for ever.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from flows.running.slots import Slot, gpu_slots

MACHINE = "ALIGN_MACHINE"
"""The machine's name, where the host's is a container's or a pod's, which is another each time."""
LEASE_S = 60.0
"""The shortest that Prefect knows."""
RENEWED_S = 15.0
PATIENCE_S = 5.0


def install_limits() -> None:
    """A limit of one for each GPU of this machine, on the server that PREFECT_API_URL names."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for slot in gpu_slots():
            _make(client, shown_name(slot))


def shown_name(slot: Slot) -> str:
    """Its name on a server, which may have several machines' slots."""
    return f"{os.environ.get(MACHINE) or socket.gethostname()}-{slot.name}"


@contextmanager
def shown(slots: Sequence[Slot]) -> Iterator[None]:
    """Show these as taken until the end of the block, if a Prefect server is there that outlives this run.

    It may be slow, gone or back again: nobody waits for it, and nothing fails with it.
    """
    from prefect.settings import get_current_settings

    if not slots or get_current_settings().api.url is None:
        yield
        return
    over = threading.Event()
    showing = threading.Thread(
        target=_show, args=([shown_name(slot) for slot in slots], _flow_run(), over), name="slots", daemon=True
    )
    showing.start()
    try:
        yield
    finally:
        over.set()
        showing.join(PATIENCE_S)


def _show(names: list[str], flow_run: UUID | None, over: threading.Event) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import ConcurrencyLeaseHolder

    holder = ConcurrencyLeaseHolder(type="flow_run", id=flow_run) if flow_run else None
    lease: UUID | None = None
    with get_client(sync_client=True) as client:
        while not over.is_set():
            try:
                if lease is None:
                    for name in names:
                        _make(client, name)
                    answer = client.increment_concurrency_slots_with_lease(names, 1, "concurrency", LEASE_S, holder)
                    lease = UUID(answer.json()["lease_id"])
                else:
                    client.renew_concurrency_lease(lease, LEASE_S)
            except Exception:  # whatever it is: a page hangs on it, and no stage
                lease = None  # often, one of a run that was killed has not run out yet
            over.wait(RENEWED_S)
        if lease is not None:
            with suppress(Exception):  # it runs out by itself
                client.release_concurrency_slots_with_lease(lease)


def _make(client: Any, name: str) -> None:
    """A limit of one, unless there is one by this name, with whatever number somebody has given it."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    try:
        client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def _flow_run() -> UUID | None:
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None
