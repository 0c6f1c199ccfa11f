"""`align up`, `align up --status` and `align down`, as tables or as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.addresses import without_secrets
from flows.servers import asking
from flows.servers.commands import shown_host
from flows.servers.readable import reads_only
from flows.servers.state import (
    LOOPBACK,
    MLFLOW,
    ONLY_HERE,
    PREFECT,
    ROLES,
    SERVER_PASSWORD,
    SERVING,
    Servers,
    bracketed,
    folder_of,
    named_prefect,
)  # fmt: skip

if TYPE_CHECKING:
    from flows.servers.choosing import Asked

SAID = {PREFECT: "Prefect", MLFLOW: "MLflow", SERVING: "deployments"}


def show_up(home: Path, *, asked: Asked, as_json: bool) -> int:
    """Start what is not up, and say where it is."""
    from flows.servers.starting import up

    began = time.monotonic()
    if (before := Servers.load(home)) is None or before.missing:
        print(f"starting what is not up for {home}; that takes about half a minute", file=sys.stderr)
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    servers, started = up(home, asked)
    report = report_of(home, servers)
    for line in unguarded(servers):
        print(line, file=sys.stderr)
    if as_json:
        print(json.dumps({**report, "started": started}))
        return 0
    took = f"started {', '.join(SAID[role] for role in started)} in {time.monotonic() - began:.0f} s"
    print(took if started else "was up already")
    print(_lines(report, servers))
    for line in (*_remarks(servers), *_named_elsewhere(servers)):
        print(line, file=sys.stderr)
    return 0


def show_status(home: Path, *, as_json: bool) -> int:
    """0 if all are there and answer, else 1."""
    servers = Servers.load(home)
    report = {"up": False, "home": str(home)} if servers is None else report_of(home, servers)
    if as_json:
        print(json.dumps(report))
    else:
        print(_lines(report, servers) if servers and servers.processes else "not up; `align up` starts it")
        if servers and servers.processes and not report["up"]:
            print("`align up` starts what is missing", file=sys.stderr)
    return 0 if report["up"] else 1


def show_down(home: Path, *, as_json: bool) -> int:
    from flows.servers.stopping import down

    ended = down(home)
    if as_json:
        print(json.dumps({"ended": ended.roles, "processes": ended.processes, "killed": ended.killed}))
    elif ended.processes:
        print(f"ended {', '.join(SAID[role] for role in ended.roles) or 'what was left'}: {ended.processes} processes"
              + (f", {ended.killed} of which had to be killed" if ended.killed else ""))  # fmt: skip
    else:
        print("was not up")
    return 0


def report_of(home: Path, servers: Servers) -> dict[str, Any]:
    """All that is known of the three, as `--json` prints it."""
    roles = {}
    for role in ROLES:
        alive = servers.alive(role)
        process = servers.processes.get(role)
        roles[role] = {
            "alive": alive,
            "answers": alive and asking.answers(servers, role),
            "pid": process.pid if process and alive else None,
            "url": _page(servers, role),
            "version": servers.versions.get(role),
        }
    up = servers.ready and all(one["answers"] for one in roles.values())
    return {
        "up": up, "home": str(home), "host": servers.host, "folder": servers.folder, "logs": str(folder_of(home)),
        "prefect_api": servers.prefect_api, **roles,
    }  # fmt: skip


def _page(servers: Servers, role: str) -> str | None:
    shown = bracketed(LOOPBACK if servers.host == LOOPBACK else shown_host(servers))
    prefect = f"http://{shown}:{servers.prefect_port}"
    if role == PREFECT:
        return prefect
    if role == MLFLOW:
        return f"http://{shown}:{servers.mlflow_port}"
    found = asking.deployment(servers) if servers.alive(PREFECT) else None
    return f"{prefect}/deployments/deployment/{found['id']}" if found else None


def _lines(report: dict[str, Any], servers: Servers) -> str:
    rows = []
    for role in ROLES:
        one = report[role]
        state = "answers" if one["answers"] else "does not answer" if one["alive"] else "is not there"
        rows.append(f"{SAID[role]:12} {state:15} {one['url'] or '-'}")
    rows.append(f"recipes are looked up in {report['folder']}; logs are in {report['logs']}")
    if only := reads_only(servers):
        rows.append(f"{only} (ALIGN_DATA_ROOTS says where, when `align up` starts them)")
    return "\n".join(rows)


def unguarded(servers: Servers) -> list[str]:
    """What must be known of servers that other machines can reach."""
    if servers.host in ONLY_HERE:
        return []
    where, more = f"can be reached at {shown_host(servers)}", "put a firewall or a proxy before it"
    if servers.password() is not None:
        return [f"warning: MLflow asks for no password and {where}: whoever does reads and deletes results; {more}"]
    return [
        f"warning: neither server asks for a password, and both {where}: whoever does starts runs on this machine, and "
        f"reads and deletes results; for Prefect `align down`, then `align up` with {SERVER_PASSWORD}=USER:PASSWORD; "
        f"for MLflow {more}"
    ]


def _remarks(servers: Servers) -> list[str]:
    found = []
    if servers.folder != str(Path.cwd()):
        found.append(f"note: served flow runs look for recipes in {servers.folder}, where `align up` was first given")
    return found


def _named_elsewhere(servers: Servers) -> list[str]:
    """What the environment says against the servers that are up."""
    named = {"PREFECT_API_URL": named_prefect(), "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI")}
    return [
        f"note: {name} is {without_secrets(value)}, so `align run` uses that from here"
        for name, value in named.items()
        if value and value.rstrip("/") not in (servers.prefect_api, servers.mlflow)
    ]


def _as_ctrl_c(number: int, frame: object) -> None:
    """Whoever ends `align up` with SIGTERM finds nothing half started, as after Ctrl-C."""
    raise KeyboardInterrupt
