"""What servers say of themselves over HTTP, within seconds; None where nothing sensible comes."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from flows.addresses import without_secrets
from flows.servers.state import MLFLOW, PASSWORD, PREFECT, ROLES, SERVER_PASSWORD, Servers

TIMEOUT_S = 3.0
POLLED_S = 60.0
"""Prefect itself takes a deployment for not ready when nobody has asked for its runs for so long."""
_OPENER = build_opener(ProxyHandler({}))  # a proxy of the user's leads elsewhere, never to this machine


def ask(url: str, timeout_s: float = TIMEOUT_S, password: str | None = None) -> str | None:
    """The text at an address, if it is there; `password` is `user:password`, for a server that is known."""
    parts = urlsplit(url)
    if parts.username is not None:
        url, password = without_secrets(url), f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    headers = {"Authorization": f"Basic {b64encode(password.encode()).decode()}"} if password else {}
    try:
        with _OPENER.open(Request(url, headers=headers), timeout=timeout_s) as answer:
            return str(answer.read(1 << 20).decode(errors="replace"))
    except (HTTPError, HTTPException, OSError, ValueError):
        return None


def _ask_json(url: str, password: str | None = None) -> Any:
    try:
        return json.loads(ask(url, password=password) or "null")
    except ValueError:
        return None


def _password() -> str | None:
    """What the environment says of the Prefect server that is used; nobody else is told."""
    return os.environ.get(PASSWORD) or os.environ.get(SERVER_PASSWORD)


def prefect_version(server: str, *, used: bool = False) -> str | None:
    """The version of the Prefect server at an address without `/api`, which may be the one that is used."""
    found = _ask_json(f"{server}/api/admin/version", _password() if used else None)
    return found if isinstance(found, str) else None


def prefect_ui_api(server: str) -> str | None:
    """The address of the API that its pages call in the browser."""
    found = _ask_json(f"{server}/ui-settings")
    return found.get("api_url") if isinstance(found, dict) else None


def mlflow_version(server: str) -> str | None:
    """The version of the MLflow server at an address."""
    if (ask(f"{server}/health") or "").strip() != "OK":
        return None
    found = (ask(f"{server}/version") or "").strip()
    return found if found[:1].isdecimal() else None


def deployment(servers: Servers, name: str = "align/align") -> dict[str, Any] | None:
    """A deployment as Prefect knows it."""
    found = _ask_json(f"{servers.prefect_api}/deployments/name/{name}", _password())
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
