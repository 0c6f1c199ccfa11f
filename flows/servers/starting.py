"""`align up`: what is not up yet is started, all is waited for, and where to find it is said."""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from artifacts.errors import ServerError, UserError
from artifacts.locking import held
from artifacts.store import Store
from flows.servers import asking, databases, ports
from flows.servers.commands import start
from flows.servers.processes import end_marked
from flows.servers.state import LOOPBACK, MLFLOW, PREFECT, ROLES, SERVING, Servers, folder_of, log_of, state_file

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
PATIENCE_S = 180.0
GRACE_S = 15.0


@dataclass(frozen=True)
class Asked:
    """What the user wants of the servers; None where they leave it to us."""

    host: str | None = None
    prefect_port: int | None = None
    mlflow_port: int | None = None
    limit: int | None = None


def up(home: Path, asked: Asked) -> tuple[Servers, list[str]]:
    """The servers, all answering, and which of them had to be started; a second call at the same time waits.

    Raises UserError for what can't be as asked and ServerError if one does not come up; what this call started is
    ended then.
    """
    Store(home).check_writable(0)
    with alone(home):
        found = Servers.load(home)
        if found is not None and any(found.alive(role) for role in ROLES):
            _agree(found, asked)
            servers, missing = _to_repair(home, found)
        else:
            servers, missing = _new(home, found, asked), list(ROLES)
            if found is not None:  # what a killed server leaves
                end_marked([found.mark()], [], GRACE_S)
        if not missing and found is not None and found.ready:
            return servers, []
        return _start(home, servers, missing), missing


class alone:  # noqa: N801  (a context manager)
    """The one `align up` or `align down` of this home that is at work."""

    def __init__(self, home: Path) -> None:
        self.path = folder_of(home) / "lock"

    def __enter__(self) -> None:
        with held(self.path) as is_free:
            if not is_free:
                print("another `align up` or `align down` is at work; waiting for it", file=sys.stderr)
        self.lock = held(self.path, wait=True)
        self.lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self.lock.__exit__(None, None, None)


def _agree(found: Servers, asked: Asked) -> None:
    for name in ("host", "prefect_port", "mlflow_port", "limit"):
        wanted, got = getattr(asked, name), getattr(found, name)
        if wanted is not None and wanted != got:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {wanted}: what is up has {got}; `align down` first, then `align up` again")


def _new(home: Path, found: Servers | None, asked: Asked) -> Servers:
    """A set that is not up yet; on the ports of the last one, so that links stay, if these are free."""
    host = asked.host or LOOPBACK
    prefect = _port(host, "--prefect-port", asked.prefect_port, found.prefect_port if found else None, PREFECT_PORT)
    mlflow = _port(
        host, "--mlflow-port", asked.mlflow_port, found.mlflow_port if found else None, MLFLOW_PORT, taken=prefect
    )
    return Servers(secrets.token_hex(8), host, prefect, mlflow, str(Path.cwd()), asked.limit or 1)


def _port(host: str, option: str, named: int | None, last: int | None, first: int, taken: int = 0) -> int:
    if named is None:
        if last is not None and last != taken and ports.free(host, last):
            return last
        return ports.next_free(host, first, {taken})
    if named == taken:
        raise UserError(f"{option} {named}: the other server has this port; name two")
    if not ports.free(host, named):
        raise UserError(
            f"{option} {named}: {who_has(host, named)}; name another, end what is there, or leave {option} out"
        )
    return named


def who_has(host: str, port: int) -> str:
    """That a port is taken, by whom, and what answers there."""
    who = ports.listener(port) or "someone"
    answer = asking.what_is_there(f"http://{LOOPBACK if host in ('0.0.0.0', '::') else host}:{port}")
    return f"{who} listens there" + (f", and answers as {answer}" if answer else "")


def _to_repair(home: Path, found: Servers) -> tuple[Servers, list[str]]:
    """A set of which some are left, and which to start again: those that are gone, or alive and dumb."""
    missing = [role for role in ROLES if not found.alive(role) or (found.ready and not asking.answers(found, role))]
    if not missing:
        return found, []
    end_marked(
        [found.mark(role) for role in missing], [found.processes[r] for r in missing if r in found.processes], GRACE_S
    )
    moved = {}
    for role, name in ((PREFECT, "prefect_port"), (MLFLOW, "mlflow_port")):
        port = getattr(found, name)
        if role in missing and not ports.free(found.host, port):
            moved[name] = ports.next_free(found.host, port)
    if moved and SERVING not in missing:  # it knows the old address
        missing.append(SERVING)
        end_marked([found.mark(SERVING)], [found.processes[SERVING]], GRACE_S)
    return found.having(home, ready=False, **moved), missing


def _start(home: Path, servers: Servers, roles: list[str]) -> Servers:
    since, logs = datetime.now(UTC), {role: _size(log_of(home, role)) for role in roles}
    try:
        databases.check(home, roles)
        servers = servers.having(home, ready=False, versions=versions())  # before anything is there to be lost
        for role in roles:
            servers = servers.having(home, processes={**servers.processes, role: start(servers, role, home)})
        _wait(home, servers, roles, since, logs)
    except BaseException:  # Ctrl-C too: nothing half started is left
        end_marked(
            [servers.mark(role) for role in roles],
            [servers.processes[r] for r in roles if r in servers.processes],
            GRACE_S,
        )
        if set(roles) == set(ROLES):
            state_file(home).unlink(missing_ok=True)
        raise
    return servers.having(home, ready=True)


def versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in (PREFECT, MLFLOW)}


def _wait(home: Path, servers: Servers, roles: list[str], since: datetime, logs: dict[str, int]) -> None:
    """Until all answer; `logs` says where in each log this start begins."""
    deadline, waiting = time.monotonic() + PATIENCE_S, list(ROLES)
    while waiting:
        for role in list(waiting):
            if not servers.alive(role):
                raise ServerError(f"{role} ended while it started: {_last_words(home, role, logs.get(role, 0))}")
            if asking.answers(servers, role, since if role == SERVING and SERVING in roles else None):
                waiting.remove(role)
        if time.monotonic() > deadline:
            raise ServerError(
                f"{waiting[0]} did not answer within {PATIENCE_S:.0f} s: "
                f"{_last_words(home, waiting[0], logs.get(waiting[0], 0))}"
            )
        time.sleep(0.3)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_words(home: Path, role: str, begin: int) -> str:
    """The last line of a log that looks like an error, or else the last, and where the rest is."""
    lines: list[str] = []
    with suppress(OSError):
        text = log_of(home, role).read_bytes()
        lines = [
            line.strip()
            for line in text[begin if begin < len(text) else 0 :].decode(errors="replace").splitlines()
            if line.strip()
        ]
    errors = [line for line in lines if "rror" in line and not line.startswith(("Traceback", "File "))]
    said = (errors or lines or ["it said nothing"])[-1][:300]
    return f"{said} (all of it is in {log_of(home, role)})"
