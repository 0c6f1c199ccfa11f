"""The servers: those of `align up`, those that the environment names, and the ports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from flows.addresses import without_secrets
from flows.servers import asking, ports
from flows.servers.choosing import MLFLOW_PORT, PREFECT_PORT, who_has
from flows.servers.commands import ui_api
from flows.servers.findings import BROKEN, OK, WARNING, Finding
from flows.servers.passwords import Password, mlflow_password, own_password, prefect_password
from flows.servers.readable import reads_only
from flows.servers.state import IN_FILES, LEASES, LOOPBACK, MLFLOW, PREFECT, ROLES, Servers, log_of, named_prefect
from flows.servers.versions import does_not_fit

AGAIN = "`align up` starts it again"


def up_found(home: Path) -> Iterator[Finding]:
    """Whether what `align up` started is there, answers, and is what it should be."""
    servers = Servers.load(home)
    if servers is None or not servers.processes:
        yield Finding("servers", OK, "none of `align up`; a run starts its own Prefect server, and writes to mlflow.db")
        return
    for name, version in servers.versions.items():
        if servers.alive(name) and version != metadata.version(name):
            found = f"{name} {version} is up, and {metadata.version(name)} has been installed since"
            yield Finding("servers", WARNING, found, "`align down`, then `align up`")
    for role in ROLES:
        if not servers.alive(role):
            yield Finding("servers", BROKEN, f"{role} has ended; its last words are in {log_of(home, role)}", AGAIN)
        elif not asking.answers(servers, role):
            yield Finding("servers", BROKEN, f"{role} is there (process {servers.processes[role].pid}) and does not "
                          f"answer; its log is {log_of(home, role)}", "`align down`, then `align up`")  # fmt: skip
        elif role == PREFECT:
            yield from prefect_found(
                servers.prefect, ui_api(servers), "`align down`, then `align up`", own_password(servers)
            )
        elif role == MLFLOW:
            yield from mlflow_found(servers.mlflow, "`align down`, then `align up`")
        else:
            found = f"deployments are served, with recipes from {servers.folder}"
            yield Finding("servers", OK, found + (f"; {only}" if (only := reads_only(servers)) else ""))


def prefect_found(server: str, ui_wanted: str, do: str, password: Password | None = None) -> Iterator[Finding]:
    """A Prefect server: its version, whether it lets us in, and where its pages look for its API."""
    if (trouble := asking.prefect_trouble(server, password)) is not None:
        yield _trouble("Prefect", without_secrets(server), trouble, password)
        return
    version, forgets = asking.prefect_version(server, password), asking.forgets_leases(server, password)
    server = without_secrets(server)
    if version is None:
        yield Finding("servers", BROKEN, f"Prefect does not answer at {server}", do)
        return
    yield _version("prefect", "Prefect", server, version, do)
    if forgets:
        yield Finding("leases", WARNING, f"Prefect at {server} forgets who holds a slot when it restarts, and shows it "
                      "as taken for ever", f"start that server again with {LEASES}={IN_FILES}")  # fmt: skip
    ui, ui_wanted = asking.prefect_ui_api(server), without_secrets(ui_wanted)
    if ui is None or ui.rstrip("/") == ui_wanted:
        return
    local = urlsplit(ui).hostname in (LOOPBACK, "localhost", "::1")
    yield Finding("servers", BROKEN if local else WARNING, f"Prefect's pages at {server} call the API at {ui}",
                  f"start that server again with PREFECT_UI_API_URL={ui_wanted}, or use `align up`")  # fmt: skip


def mlflow_found(server: str, do: str, password: Password | None = None) -> Iterator[Finding]:
    """An MLflow server: its version, and whether it lets us in."""
    if (trouble := asking.mlflow_trouble(server, password)) is not None:
        yield _trouble("MLflow", without_secrets(server), trouble, password)
        return
    version, server = asking.mlflow_version(server, password), without_secrets(server)
    if version is None:
        yield Finding("servers", BROKEN, f"MLflow does not answer at {server}", do)
    else:
        yield _version("mlflow", "MLflow", server, version, do)


def _trouble(name: str, server: str, trouble: asking.Trouble, password: Password | None) -> Finding:
    return Finding("servers", BROKEN, f"{name} at {server} {trouble}", asking.do_about(trouble, password))


def _version(package: str, name: str, server: str, version: str, do: str) -> Finding:
    if (said := does_not_fit(package, version)) is None:
        return Finding("servers", OK, f"{name} {version} answers at {server}")
    return Finding("servers", BROKEN, f"{name} at {server}: {said}",
                   f"start a server of such a version there; for one of `align up`: {do}")  # fmt: skip


def named_found(home: Path) -> Iterator[Finding]:
    """Servers that the environment names, which runs use then, whatever is up."""
    servers = Servers.load(home)
    own = (servers.prefect_api, servers.mlflow) if servers else ()
    prefect, mlflow = named_prefect() or "", os.environ.get("MLFLOW_TRACKING_URI", "")
    if prefect.startswith("http") and prefect.rstrip("/") not in own:
        server = prefect.rstrip("/").removesuffix("/api")
        yield from prefect_found(server, f"{server}/api", "start it, or unset PREFECT_API_URL", prefect_password())
    if mlflow.startswith("http") and mlflow.rstrip("/") not in own:
        yield from mlflow_found(mlflow.rstrip("/"), "start it, or unset MLFLOW_TRACKING_URI", mlflow_password())


def ports_found(home: Path) -> Iterator[Finding]:
    """Whether the servers' ports are free, where none is up."""
    servers = Servers.load(home)
    host = servers.host if servers else LOOPBACK
    wanted = {PREFECT: PREFECT_PORT, MLFLOW: MLFLOW_PORT}
    if servers is not None and len(servers.missing) < len(ROLES):
        wanted = {PREFECT: servers.prefect_port, MLFLOW: servers.mlflow_port}
    for role, port in wanted.items():
        if servers is not None and servers.alive(role):
            yield Finding("ports", OK, f"{port} is {role}'s")
        elif ports.free(host, port):
            yield Finding("ports", OK, f"{port} is free for {role}")
        else:
            yield Finding("ports", WARNING, f"{port}: {who_has(host, port)}",
                          f"`align up` takes the next free port for {role}; or end what is there")  # fmt: skip
