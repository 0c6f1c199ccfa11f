"""How each of the three processes is started: its command, and what it finds in its environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from flows.addresses import past_proxies
from flows.links import PAGES
from flows.servers.processes import MARK, Started
from flows.servers.state import (
    EVERYWHERE,
    IN_FILES,
    LEASES,
    LOOPBACK,
    MLFLOW,
    ONLY_HERE,
    ORIGINS,
    PASSWORD,
    PREFECT,
    SERVING,
    Servers,
    bracketed,
    folder_of,
    log_of,
    profiles_file,
)  # fmt: skip

HTTP_PORT = 80
"""Which browsers leave out."""
LOG_BYTES = 10 << 20
"""A log that is longer makes way for a new one when its process is started again."""
POLL_S = 3
"""How often the serving process asks Prefect for flow runs that are due."""
NOT_INHERITED = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI", "PREFECT_API_KEY", PAGES)


def start(servers: Servers, role: str, home: Path) -> Started:
    """Start one, in a session of its own, and let it go."""
    log = log_of(home, role)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".old.log"))
    with log.open("ab") as output:
        process = subprocess.Popen(
            COMMANDS[role](servers, home), env=environment(servers, role, home), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, cwd=servers.folder if role == SERVING else log.parent,
            start_new_session=True,
        )  # fmt: skip
    process.returncode = 0  # it is not ours to wait for: it outlives us
    return Started.of(process.pid)


def prefect_command(servers: Servers, home: Path) -> list[str]:
    where = ["--host", servers.host, "--port", str(servers.prefect_port)]
    return [sys.executable, "-m", "flows.servers.guarded_prefect", "server", "start", *where]


def mlflow_command(servers: Servers, home: Path) -> list[str]:
    """On the database that runs without a server use too; artifacts stay files of this machine, to be hard-linked."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", servers.host, "--port", str(servers.mlflow_port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}",
        "--default-artifact-root", (home / "mlflow").as_uri(), "--no-serve-artifacts",
        "--uvicorn-opts", "--log-level=warning --no-access-log", *_named_by_browsers(servers),
    ]  # fmt: skip


def _named_by_browsers(servers: Servers) -> list[str]:
    """Names and addresses by which a browser may ask, where other machines can: MLflow refuses all but these."""
    if servers.host in ONLY_HERE:
        return []  # its default
    names = _names(servers, servers.mlflow_port)
    return ["--allowed-hosts", ",".join(names), "--cors-allowed-origins", _origins(names)]


def _names(servers: Servers, port: int) -> list[str]:
    """All by which a browser may call a server: on this machine and, where it listens for others, from these."""
    own = [LOOPBACK, servers.reached_at, "localhost", shown_host(servers)]
    if servers.host not in ONLY_HERE:
        own += [socket.gethostname(), socket.getfqdn(), *_addresses()]
    names = dict.fromkeys(name.lower() for name in own)  # as browsers spell them
    return [bracketed(name) + (f":{port}" if port != HTTP_PORT else "") for name in names]


def _addresses() -> list[str]:
    """Of all of this machine's interfaces, as they stand in a URL."""
    import psutil

    kinds = (socket.AF_INET, socket.AF_INET6)
    return [one.address for each in psutil.net_if_addrs().values() for one in each
            if one.family in kinds and "%" not in one.address]  # fmt: skip


def _origins(names: Iterable[str]) -> str:
    return ",".join(f"http://{one}" for one in names)


def serving_command(servers: Servers, home: Path) -> list[str]:
    return [sys.executable, "-m", "flows.deployments.serving", "--limit", str(servers.limit)]


COMMANDS: dict[str, Callable[[Servers, Path], list[str]]] = {
    PREFECT: prefect_command,
    MLFLOW: mlflow_command,
    SERVING: serving_command,
}


def shown_host(servers: Servers) -> str:
    """The name under which a browser, perhaps on another machine, finds the servers."""
    return socket.gethostname() if servers.host in EVERYWHERE else servers.host


def ui_api(servers: Servers) -> str:
    """The address of the API as Prefect's pages, in the browser, must call it."""
    return f"http://{bracketed(shown_host(servers))}:{servers.prefect_port}/api"


def environment(servers: Servers, role: str, home: Path) -> dict[str, str]:
    """The user's, but for what names the servers and the home."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    own = {
        MARK: servers.mark(role),
        "ALIGN_HOME": str(home),
        "PREFECT_API_URL": servers.prefect_api,
        "PREFECT_UI_URL": ui_api(servers).removesuffix("/api"),
        "PYTHONUNBUFFERED": "1",
    }
    own |= past_proxies(inherited, servers.reached_at)
    if (password := servers.password()) is not None:
        own[PASSWORD] = password
    if role == PREFECT:  # whose pages would call port 4200 else, whatever the server's is
        pages = inherited.get("PREFECT_SERVER_UI_API_URL") or inherited.get("PREFECT_UI_API_URL") or ui_api(servers)
        own |= {
            "PREFECT_UI_API_URL": pages,
            "PREFECT_SERVER_UI_API_URL": pages,
            ORIGINS: ",".join(filter(None, [_origins(_names(servers, servers.prefect_port)), inherited.get(ORIGINS)])),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            # In memory, by default: slots that are taken when the server restarts would be taken for ever.
            LEASES: IN_FILES,
            # Where those files are: in a folder of all homes, one's server would drop what another's had lent.
            "PREFECT_HOME": str(folder_of(home) / "prefect"),
            "PREFECT_PROFILES_PATH": str(profiles_file()),
        }
    if role == MLFLOW:
        own["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes and a gigabyte that nothing here needs
    if role == SERVING:
        own |= {"MLFLOW_TRACKING_URI": servers.mlflow, "PREFECT_RUNNER_POLL_FREQUENCY": str(POLL_S)}
    return inherited | own
