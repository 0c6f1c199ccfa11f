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
PATIENCE_S = 2.0
SIGNAL = signal.SIGUSR1
"""As SIGINT, which whatever a script starts in its background ignores."""
_CANCELLED = threading.Event()


@contextmanager
def heeding(watcher: Watcher) -> Iterator[None]:
    """In this block Cancel raises KeyboardInterrupt in the main thread, unless a worker sees to that; being taken for
    dead is put right. A server that lives as long as the run has neither rules nor pages to press it on."""
    _CANCELLED.clear()
    if get_current_settings().api.url is None:
        yield
        return
    mine = deployment.id is None and threading.current_thread() is threading.main_thread()
    before = signal.signal(SIGNAL, signal.default_int_handler) if mine else None
    own = _OwnState(UUID(flow_run.id), watcher, mine)
    own.start()
    try:
        yield
    finally:
        try:
            own.end()
        finally:
            if mine:
                signal.signal(SIGNAL, before)


def cancelled() -> State[Any] | None:
    """What becomes of a flow that KeyboardInterrupt has ended; None if that was no Cancel."""
    if not _CANCELLED.is_set():
        return None
    return Cancelled(message="cancelled in Prefect's pages, after saving; run the same command again to go on")


class _OwnState(threading.Thread):
    """Asks for the state of a flow run until its end; `mine` if no worker sees to Cancel."""

    def __init__(self, run: UUID, watcher: Watcher, mine: bool) -> None:
        super().__init__(name="own state", daemon=True)
        self.of, self.watcher, self.mine = run, watcher, mine
        self._over, self._acting = threading.Event(), threading.Lock()

    def end(self) -> None:
        """From here on nothing is done to the run, which is about to say how it ended."""
        self._over.set()
        if self._acting.acquire(timeout=PATIENCE_S):  # not longer: the server may be slow to answer
            self._acting.release()

    def run(self) -> None:
        while not self._over.wait(ASK_S):
            with suppress(PrefectException, HTTPError), get_client(sync_client=True) as client:
                while not self._over.is_set():  # until the server does not answer
                    self._heed(client, client.read_flow_run(self.of).state)
                    self._over.wait(ASK_S)

    def _heed(self, client: SyncPrefectClient, state: State[Any] | None) -> None:
        with self._acting:
            if state is None or self._over.is_set():
                return
            if state.is_crashed() and (state.message or "").startswith(TAKEN_FOR_DEAD):
                client.set_flow_run_state(self.of, Running(message="is alive"), force=True)
                self.watcher.line("prefect", "had taken this run for dead, and knows better now")
            elif self.mine and state.is_cancelling():
                self._over.set()
                _CANCELLED.set()
                self.watcher.line("cancel", "asked for; what trains saves and ends")
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, SIGNAL)
