"""What servers say of themselves over HTTP, within seconds; None where nothing sensible comes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from flows.addresses import without_secrets
from flows.servers.passwords import Password, basic, own_password
from flows.servers.state import MLFLOW, ORIGINS, PREFECT, ROLES, Servers

TIMEOUT_S = 3.0
DATABASE_S = 15.0
"""A server gives its database some time before it says that this is away."""
POLLED_S = 60.0
"""Prefect itself takes a deployment for not ready when nobody has asked for its runs for so long."""
_OPENER = build_opener(ProxyHandler({}))  # a proxy of the user's leads elsewhere, never to this machine


class Trouble(StrEnum):
    """Why a server that is there is of no use."""

    PASSWORD = "wants a name and a password, and these are not they"
    NAME = "is there, and does not answer by this name (403)"
    DATABASE = "is there, but can't reach its database"


_MLFLOW = {401: Trouble.PASSWORD, 403: Trouble.PASSWORD}
_PREFECT = {401: Trouble.PASSWORD, 403: Trouble.NAME}


def do_about(trouble: Trouble, password: Password | None) -> str:
    """What whoever meets it can do."""
    if trouble == Trouble.PASSWORD and password is not None:
        return password.do
    if trouble == Trouble.NAME:
        return f"call it by its machine's own name or address, or name http://THIS:PORT in {ORIGINS} for its `align up`"
    return "see to that server: its log says more"


def ask(url: str, timeout_s: float = TIMEOUT_S, password: Password | None = None) -> tuple[int | None, str]:
    """The status and the text at an address; no status if nothing is there.

    Who an address itself names is told too, and nobody else; `password` is for a server that is known.
    """
    parts = urlsplit(url)
    headers = password.header if password else {}
    if parts.username is not None:
        url, headers = without_secrets(url), basic(f"{unquote(parts.username)}:{unquote(parts.password or '')}")
    try:
        with _OPENER.open(Request(url, headers=headers), timeout=timeout_s) as answer:
            return int(answer.status), str(answer.read(1 << 20).decode(errors="replace"))
    except HTTPError as error:
        return error.code, ""
    except (HTTPException, OSError, ValueError):
        return None, ""


def _ask_json(url: str, password: Password | None = None) -> Any:
    try:
        return json.loads(ask(url, password=password)[1] or "null")
    except ValueError:
        return None


def prefect_version(server: str, password: Password | None = None) -> str | None:
    """The version of the Prefect server at an address without `/api`."""
    found = _ask_json(f"{server}/api/admin/version", password)
    return found if isinstance(found, str) else None


def prefect_ui_api(server: str) -> str | None:
    """The address of the API that its pages call in the browser."""
    found = _ask_json(f"{server}/ui-settings")
    return found.get("api_url") if isinstance(found, dict) else None


def forgets_leases(server: str, password: Password | None = None) -> bool:
    """Whether a Prefect server has in its memory alone who holds a slot, as it has by default."""
    found = _ask_json(f"{server}/api/admin/settings", password)
    try:
        return str(found["server"]["concurrency"]["lease_storage"]).endswith(".memory")
    except (TypeError, KeyError):
        return False


def prefect_trouble(server: str, password: Password | None = None) -> Trouble | None:
    """What keeps a Prefect server that is there from answering us."""
    if (trouble := _PREFECT.get(ask(f"{server}/api/admin/version", password=password)[0] or 0)) is not None:
        return trouble
    return Trouble.DATABASE if ask(f"{server}/api/ready", DATABASE_S)[0] in (500, 503) else None


def mlflow_version(server: str, password: Password | None = None) -> str | None:
    """The version of the MLflow server at an address."""
    if ask(f"{server}/health")[1].strip() != "OK":
        return None
    found = ask(f"{server}/version", password=password)[1].strip()
    return found if found[:1].isdecimal() else None


def mlflow_trouble(server: str, password: Password | None = None) -> Trouble | None:
    """What keeps an MLflow server that is there from answering us."""
    if ask(f"{server}/health")[1].strip() != "OK":
        return None
    status, _ = ask(f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0", DATABASE_S, password)
    return Trouble.DATABASE if status in (500, 503) else _MLFLOW.get(status or 0)


def deployment(servers: Servers, name: str = "align/align") -> dict[str, Any] | None:
    """A deployment as Prefect knows it."""
    found = _ask_json(f"{servers.prefect_api}/deployments/name/{name}", own_password(servers))
    return found if isinstance(found, dict) and "id" in found else None


def polled(servers: Servers, since: datetime | None = None) -> bool:
    """Whether somebody has asked for the deployment's flow runs since then, by default within the last minute."""
    last = (deployment(servers) or {}).get("last_polled")
    if not last:
        return False
    when = datetime.fromisoformat(last.replace("Z", "+00:00"))
    return when > since if since is not None else (datetime.now(UTC) - when).total_seconds() < POLLED_S


def answers(servers: Servers, role: str, since: datetime | None = None) -> bool:
    """Whether a role does what it is there for."""
    if role == PREFECT:
        return _ask_json(f"{servers.prefect_api}/health") is True
    if role == MLFLOW:
        return mlflow_version(servers.mlflow) is not None
    return polled(servers, since)


def all_answer(servers: Servers) -> bool:
    return all(servers.alive(role) and answers(servers, role) for role in ROLES)


def what_is_there(server: str) -> str | None:
    """What kind of server of ours answers at an address, in words."""
    if (version := prefect_version(server)) is not None:
        return f"Prefect {version}"
    if (version := mlflow_version(server)) is not None:
        return f"MLflow {version}"
    return None
