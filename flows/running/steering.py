"""A pause that somebody asks for in Prefect's pages while a stage trains.

Prefect puts the flow run into `Suspended` at once and lets its process notice between two tasks, which may be hours
later. Here the trainers are asked to save and end, so that the machine is free when the page says that it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.states import Cancelled

from flows.running.launch import end_trainers
from flows.running.watch import Watcher
from flows.servers.crash_rule import LEFT

POLL_S = 0.3
SAVING_S = 60.0
"""How long a trainer may take to save; nobody waits for this process as for one that is cancelled."""


def pause_asked_for() -> bool:
    """Whether this flow run is to pause: Prefect raises its `Pause` when the task that runs has ended."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run_suspension_request.is_requested()


def leave() -> None:
    """Where the flow run is to pause, say that this process goes: flows/servers/crash_rule.py would miss it else."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not pause_asked_for():
        return
    flow = {"prefect.resource.id": f"prefect.flow.{context.flow_run.flow_id}", "prefect.resource.role": "flow",
            "prefect.resource.name": context.flow.name if context.flow else ""}  # fmt: skip
    emit_event(LEFT, resource={"prefect.resource.id": f"prefect.flow-run.{context.flow_run.id}"}, related=[flow])


def suspended() -> State[Any]:
    """What becomes of a stage's task that was ended for a pause."""
    return Cancelled(name="Suspended", message="ended as asked, after saving; goes on when the flow run is resumed")


@contextmanager
def pausing(watcher: Watcher) -> Iterator[None]:
    """In this block a pause ends the trainers."""
    over, context = threading.Event(), FlowRunContext.get()

    def listen() -> None:
        while context is not None and not over.wait(POLL_S):
            if context.flow_run_suspension_request.is_requested():
                watcher.line("pause", "asked for; what trains saves and ends. Resume the flow run to go on")
                end_trainers(SAVING_S)
                return

    listener = threading.Thread(target=listen, name="pausing", daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
