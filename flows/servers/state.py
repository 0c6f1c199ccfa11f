"""What `align up` has started, in `$ALIGN_HOME/up/state.json`: read in a moment, without any library."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts.syncing import write_whole
from flows.addresses import past_proxies
from flows.links import PAGES
from flows.servers.processes import Started

PREFECT, MLFLOW, SERVING = ROLES = ("prefect", "mlflow", "serving")
LOOPBACK = "127.0.0.1"
ONLY_HERE = (LOOPBACK, "localhost", "::1")
EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}
"""What means all addresses, and the one of them by which this machine reaches itself; by the other it does not."""
LEASES, IN_FILES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
"""Where a Prefect server keeps who holds a slot, and the choice that outlives it."""
ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
"""Where pages come from that may ask Prefect, divided by commas: `align up` names its own, and adds what is there."""
SERVER_PASSWORD, PASSWORD = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
"""What a Prefect server asks for, and what its clients tell it, as `user:password`."""


@dataclass(frozen=True)
class Servers:
    """Two servers and the process that serves the deployments."""

    token: str
    host: str
    """Which the servers listen on."""
    prefect_port: int
    mlflow_port: int
    folder: str
    """In which served flow runs look for recipes."""
    limit: int
    """So many served flow runs at the same time."""
    versions: dict[str, str] = field(default_factory=dict)
    ready: bool = False
    """Whether all have answered since they were started."""
    processes: dict[str, Started] = field(default_factory=dict)

    @classmethod
    def load(cls, home: Path) -> Servers | None:
        """None if nothing was started, or the file makes no sense."""
        try:
            found = json.loads(state_file(home).read_text())
            processes = {role: Started(**one) for role, one in found.pop("processes").items()}
            return cls(**found, processes=processes)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, home: Path) -> Servers:
        """Written whole or not at all."""
        folder_of(home).mkdir(parents=True, exist_ok=True)
        write_whole(state_file(home), json.dumps(asdict(self), indent=1))
        return self

    def having(self, home: Path, **changes: Any) -> Servers:
        """The same with changes, saved."""
        return replace(self, **changes).save(home)

    def alive(self, role: str) -> bool:
        return role in self.processes and self.processes[role].alive()

    @property
    def missing(self) -> list[str]:
        """Whose process is gone."""
        return [role for role in ROLES if not self.alive(role)]

    def mark(self, role: str = "") -> str:
        """What stands in the environment of a role's processes; without a role, of all."""
        return f"{self.token}/{role}"

    def password(self) -> str | None:
        """Of the Prefect server, as whichever shell started it gave it; of one that is to be started, this one's."""
        started = self.processes.get(PREFECT)
        return (started.variables() if started and started.alive() else os.environ).get(SERVER_PASSWORD)

    @property
    def reached_at(self) -> str:
        """The address at which this machine reaches them."""
        return EVERYWHERE.get(self.host, self.host)

    @property
    def mlflow(self) -> str:
        return f"http://{bracketed(self.reached_at)}:{self.mlflow_port}"

    @property
    def prefect(self) -> str:
        return f"http://{bracketed(self.reached_at)}:{self.prefect_port}"

    @property
    def prefect_api(self) -> str:
        return f"{self.prefect}/api"


def bracketed(host: str) -> str:
    """As it stands in an address."""
    return f"[{host}]" if ":" in host else host


def folder_of(home: Path) -> Path:
    """Where state, lock and logs are."""
    return home / "up"


def state_file(home: Path) -> Path:
    return folder_of(home) / "state.json"


def log_of(home: Path, role: str) -> Path:
    return folder_of(home) / f"{role}.log"


def own_mlflow(home: Path) -> str | None:
    """The address of the MLflow server that serves this home's own database, if `align up` has one up."""
    servers = Servers.load(home)
    return servers.mlflow if servers and servers.ready and servers.alive(MLFLOW) else None


def use_servers(home: Path) -> None:
    """Let this process and its children use what is up, unless the user's environment names other servers.

    To be called before Prefect is imported, which reads its settings then.
    """
    servers = Servers.load(home)
    if servers is None or not servers.ready:
        return
    if servers.alive(MLFLOW) and "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = servers.mlflow
        os.environ.pop(PAGES, None)  # another server's
    if servers.alive(PREFECT) and named_prefect() is None:
        os.environ["PREFECT_API_URL"] = servers.prefect_api
        if (password := servers.password()) is not None:
            os.environ.setdefault(PASSWORD, password)
        os.environ |= past_proxies(os.environ, servers.reached_at)


def named_prefect() -> str | None:
    """The Prefect server that the environment names, or else the active profile of Prefect's own settings."""
    return prefect_setting("PREFECT_API_URL")


def profiles_file() -> Path:
    """Where Prefect's own settings are, by profile."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")


def prefect_setting(name: str) -> str | None:
    """A setting of Prefect's as the environment, or else the active profile, has it."""
    if name in os.environ:
        return os.environ[name]
    try:
        with profiles_file().open("rb") as file:
            found = tomllib.load(file)
        active = os.environ.get("PREFECT_PROFILE") or found.get("active", "")
        value = found.get("profiles", {}).get(active, {}).get(name)
    except (OSError, ValueError, AttributeError):  # no such file; Prefect itself complains of one that it can't read
        return None
    return None if value is None else str(value)
