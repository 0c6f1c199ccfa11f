"""What Prefect takes a flow run for while its stages run: the run itself asks now and then, and acts on it.

Cancel reaches what a worker or `align up` has started; any other process has to ask, as a terminal's does, which then
does what Ctrl-C does. And where a machine slept, or the server was away, the rule for killed runs misses signs of life
(flows/servers/crash_rule.py): a run that finds itself taken for dead says that it is not.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.runtime import deployment, flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Running

from flows.running.watch import Watcher
from flows.servers.crash_rule import TAKEN_FOR_DEAD

ASK_S = 3.0
_CANCELLED = threading.Event()


@contextmanager
def heeding(watcher: Watcher) -> Iterator[None]:
    """In this block Cancel raises KeyboardInterrupt in the main thread, unless a worker sees to that; being taken for
    dead is put right. A server that lives as long as the run has neither rules nor pages to press it on."""
    _CANCELLED.clear()
    if get_current_settings().api.url is None:
        yield
        return
    over, mine = threading.Event(), deployment.id is None and threading.current_thread() is threading.main_thread()
    asking = threading.Thread(
        target=_ask, args=(UUID(flow_run.id), over, watcher, mine), name="own state", daemon=True
    )  # fmt: skip
    asking.start()
    try:
        yield
    finally:
        over.set()  # not waited for: the server may be slow to answer


def cancelled() -> State[Any] | None:
    """What becomes of a flow that KeyboardInterrupt has ended; None if that was no Cancel."""
    if not _CANCELLED.is_set():
        return None
    return Cancelled(message="cancelled in Prefect's pages, after saving; run the same command again to go on")


def _ask(run: UUID, over: threading.Event, watcher: Watcher, mine: bool) -> None:
    while not over.wait(ASK_S):
        with suppress(PrefectException, HTTPError), get_client(sync_client=True) as client:  # until it does not answer
            while not over.is_set():
                _heed(client, run, over, watcher, mine)
                over.wait(ASK_S)


def _heed(client: SyncPrefectClient, run: UUID, over: threading.Event, watcher: Watcher, mine: bool) -> None:
    state = client.read_flow_run(run).state
    if state is None or over.is_set():
        return
    if state.is_crashed() and (state.message or "").startswith(TAKEN_FOR_DEAD):
        client.set_flow_run_state(run, Running(message="is alive"), force=True)
        watcher.line("prefect", "had taken this run for dead, and knows better now")
    elif mine and state.is_cancelling():
        over.set()
        _CANCELLED.set()
        watcher.line("cancel", "asked for; what trains saves and ends")
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
