"""Where outputs go, and what the two services need to know of it before they are imported."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.addresses import past_proxies, without_secrets
from flows.servers.state import ONLY_HERE, named_prefect

RECORDS = 64 << 20
"""Bytes that a run's own records, its logs and the services' databases may take."""


def align_home() -> Path:
    """`$ALIGN_HOME`, by default `.align/` in the current folder."""
    return Path(os.environ.get("ALIGN_HOME") or ".align").resolve()


@contextmanager
def aside(home: Path) -> Iterator[Path]:
    """A folder beside the store, so that a rename moves what is in it; gone at the end."""
    parent = home / "fetching"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare_services(home: Path) -> None:
    """Environment variables that Prefect and MLflow read when they are imported; what is set already stays.

    Prefect's result records (pointers, never weights) and its database live under `$ALIGN_HOME`, so that they go where
    the store goes, and a run without a server leaves its traces where a server shows them.
    """
    if "PREFECT_API_DATABASE_CONNECTION_URL" not in os.environ:  # the older name of the same setting
        os.environ.setdefault("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home / 'prefect.db'}")
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect-results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",  # by which flows/servers/crash_rule.py sees that a run was killed
        "PREFECT_CLIENT_MAX_RETRIES": "3",  # with its 5, a run waits four minutes for a server that is gone
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    if "@" in (api := named_prefect() or ""):  # else Prefect's links to its pages hold the password too
        defaults["PREFECT_UI_URL"] = without_secrets(api.rstrip("/").removesuffix("/api"))
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ |= past_proxies(os.environ, *ONLY_HERE)  # a server of this machine is not to be asked through one
