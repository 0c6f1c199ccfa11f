"""Where new servers are to listen: as the user wants it, or where there is room."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError
from flows.servers import asking, ports
from flows.servers.state import EVERYWHERE, LOOPBACK, Servers, bracketed

PREFECT_PORT, MLFLOW_PORT = 4200, 5000


@dataclass(frozen=True)
class Asked:
    """What the user wants of the servers; None where they leave it to us."""

    host: str | None = None
    prefect_port: int | None = None
    mlflow_port: int | None = None
    limit: int | None = None

    def check(self, found: Servers) -> None:
        """Raise UserError if what is up already is not as wanted."""
        for name in ("host", "prefect_port", "mlflow_port", "limit"):
            wanted, got = getattr(self, name), getattr(found, name)
            if wanted is not None and wanted != got:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {wanted}: what is up has {got}; `align down` first, then `align up` again")


def new_servers(asked: Asked) -> Servers:
    """A set that is not up yet, its runs at home in the current folder; raises UserError for a port that is taken."""
    host = asked.host or LOOPBACK
    if asked.prefect_port is not None and asked.prefect_port == asked.mlflow_port:
        raise UserError(f"--prefect-port and --mlflow-port: wanted two ports, got {asked.prefect_port} twice")
    prefect = _port(host, "--prefect-port", asked.prefect_port, PREFECT_PORT, {asked.mlflow_port or 0})
    mlflow = _port(host, "--mlflow-port", asked.mlflow_port, MLFLOW_PORT, {prefect})
    return Servers(secrets.token_hex(8), host, prefect, mlflow, str(Path.cwd()), asked.limit or 1)


def _port(host: str, option: str, named: int | None, first: int, taken: Collection[int]) -> int:
    if named is None:
        return ports.next_free(host, first, taken)
    if not ports.free(host, named):
        raise UserError(
            f"{option} {named}: {who_has(host, named)}; name another port, end what is there, or leave {option} out"
        )
    return named


def who_has(host: str, port: int) -> str:
    """That somebody has a port: who, and what answers there."""
    answer = asking.what_is_there(f"http://{bracketed(EVERYWHERE.get(host, host))}:{port}")
    return f"{ports.listener(port) or 'someone'} listens there" + (f" and answers as {answer}" if answer else "")
