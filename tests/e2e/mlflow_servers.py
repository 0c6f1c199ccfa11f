"""A real MLflow server, with its artifacts in a folder or in an S3-compatible store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.e2e.servers import Server


class Mlflow(Server):
    """Its database is in `folder`."""

    def __init__(self, folder: Path, artifacts: str | None = None, **environment: str) -> None:
        super().__init__("/health")
        self.folder, self.artifacts, self.more = folder, artifacts or str(folder / "artifacts"), environment
        self.uri = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder / 'db'}", "--artifacts-destination", self.artifacts,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.more}
