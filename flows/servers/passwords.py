"""The names and passwords that the environment has for servers: only ever shown to a server that it names too."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass

from flows.servers.state import PASSWORD, SERVER_PASSWORD, Servers, prefect_setting


@dataclass(frozen=True)
class Password:
    """What to show a server, and which variables to correct if it is not content."""

    variables: str
    header: dict[str, str]

    @property
    def do(self) -> str:
        """What helps where it is refused."""
        return f"{'correct' if self.header else 'set'} {self.variables}"


def prefect_password() -> Password:
    """As Prefect's client has it."""
    if key := prefect_setting("PREFECT_API_KEY"):
        return Password("PREFECT_API_KEY", {"Authorization": f"Bearer {key}"})
    named = "PREFECT_API_AUTH_STRING to what the server has as PREFECT_SERVER_API_AUTH_STRING"
    return Password(named, basic(prefect_setting(PASSWORD) or os.environ.get(SERVER_PASSWORD)))


def own_password(servers: Servers) -> Password:
    """Of the Prefect server that `align up` has started, which need not have been in this shell."""
    said = servers.password()
    return Password(prefect_password().variables, basic(said)) if said is not None else prefect_password()


def mlflow_password() -> Password:
    """As MLflow's client has it."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return Password("MLFLOW_TRACKING_TOKEN", {"Authorization": f"Bearer {token}"})
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{word}") for word in ("USERNAME", "PASSWORD"))
    return Password(
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", basic(f"{name}:{password}" if name else None)
    )


def basic(text: str | None) -> dict[str, str]:
    """The header for `user:password`."""
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"} if text else {}
