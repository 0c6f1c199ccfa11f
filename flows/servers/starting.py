"""`align up`: what is not up yet is started, and all is waited for."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from artifacts.errors import ServerError
from artifacts.locking import held
from artifacts.store import Store
from flows.addresses import without_secrets
from flows.servers import asking, databases, ports
from flows.servers.choosing import Asked, new_servers
from flows.servers.commands import start
from flows.servers.processes import end_marked
from flows.servers.state import MLFLOW, PREFECT, ROLES, SERVING, Servers, folder_of, log_of, state_file

PATIENCE_S = 300.0
"""Half a minute is usual on two cores; a machine that trains meanwhile takes minutes."""
DUMB_S = 30.0
GRACE_S = 15.0


def up(home: Path, asked: Asked) -> tuple[Servers, list[str]]:
    """The servers, all answering, and which of them had to be started; a second call at the same time waits.

    Raises UserError for what can't be as asked and ServerError if one does not come up; what this call started is
    ended then.
    """
    with alone(home):
        found = Servers.load(home)
        if found is not None and set(found.missing) != set(ROLES):
            asked.check(found)
            servers, missing = _to_repair(home, found)
        else:
            if found is not None:  # what is left of servers that were killed would keep their ports
                end_marked([found.mark()], [], GRACE_S)
            servers, missing = new_servers(asked), list(ROLES)
        return _start(home, servers, missing), missing


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Let one `align up` or `align down` of this home work at a time; raises HomeError if nothing can be written."""
    Store(home).check_writable(0)
    lock = folder_of(home) / "lock"
    with held(lock) as is_free:
        if is_free:
            yield
            return
    print("another `align up` or `align down` is at work; waiting for it", file=sys.stderr)
    with held(lock, wait=True):
        yield


def _to_repair(home: Path, found: Servers) -> tuple[Servers, list[str]]:
    """A set of which some are left, and which to start again: those that are gone, and servers that are there and dumb.

    Not what runs flow runs: it may have one going, and goes on by itself when Prefect is back.
    """
    missing = [role for role in ROLES if not found.alive(role) or (role != SERVING and _dumb(found, role))]
    _end(found, missing)
    moved = {}
    for role, name in ((PREFECT, "prefect_port"), (MLFLOW, "mlflow_port")):
        if role in missing and not ports.free(found.host, port := getattr(found, name)):
            moved[name] = ports.next_free(found.host, port, {found.prefect_port, found.mlflow_port})
    if moved and SERVING not in missing:  # it knows the old address
        missing.append(SERVING)
        _end(found, [SERVING])
    return (found.having(home, ready=False, **moved) if missing else found), missing


def _dumb(found: Servers, role: str) -> bool:
    """Whether a server that has answered before does not for a while; one that is busy is given time."""
    deadline = time.monotonic() + DUMB_S
    while found.ready and not asking.answers(found, role):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.5)
    return False


def _start(home: Path, servers: Servers, roles: Collection[str]) -> Servers:
    databases.check(home, roles)
    versions = {**servers.versions, **{name: metadata.version(name) for name in (PREFECT, MLFLOW) if name in roles}}
    since, logs = datetime.now(UTC), {role: _size(log_of(home, role)) for role in roles}
    if roles:
        servers = servers.having(home, ready=False, versions=versions)  # before there is anything that could be lost
    try:
        for role in roles:
            servers = servers.having(home, processes={**servers.processes, role: start(servers, role, home)})
        _wait(home, servers, since, logs)
    except BaseException:  # Ctrl-C too: nothing half started is left
        _end(servers, roles)
        if set(roles) == set(ROLES):
            state_file(home).unlink(missing_ok=True)
        raise
    return servers if servers.ready else servers.having(home, ready=True)


def _end(servers: Servers, roles: Collection[str]) -> None:
    leaders = [servers.processes[role] for role in roles if role in servers.processes]
    end_marked([servers.mark(role) for role in roles], leaders, GRACE_S)


def _wait(home: Path, servers: Servers, since: datetime, logs: Mapping[str, int]) -> None:
    """Until all answer; `logs` says where in the logs of those just started their words begin."""
    deadline, waiting = time.monotonic() + PATIENCE_S, list(ROLES)
    while waiting:
        for role in ROLES:
            if not servers.alive(role):
                raise ServerError(f"{role} ended while it started: {_last_words(home, role, logs.get(role, 0))}")
        waiting = [role for role in waiting if not asking.answers(servers, role, since if role in logs else None)]
        if waiting and time.monotonic() > deadline:
            said = _last_words(home, waiting[0], logs.get(waiting[0], 0))
            raise ServerError(f"{waiting[0]} did not answer within {PATIENCE_S:.0f} s: {said}")
        time.sleep(0.3 if waiting else 0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_words(home: Path, role: str, begin: int) -> str:
    """The last line of a log that looks like an error, or else the last, and where the rest is."""
    text = b""
    with suppress(OSError):
        text = log_of(home, role).read_bytes()
    lines = text[begin if begin < len(text) else 0 :].decode(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if "rror" in line and not line.startswith(("Traceback", "File "))]
    said = without_secrets((errors or lines or ["it said nothing"])[-1])[:300]
    return f"{said} (all of it is in {log_of(home, role)})"
