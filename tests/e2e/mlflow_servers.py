"""A real MLflow server, its artifacts in a folder or an S3-compatible store, for everybody or for who has a login."""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
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


class MlflowWithLogins(Mlflow):
    """Its one user is `ADMIN`, whose password can be changed."""

    ADMIN = "admin"

    def __init__(self, folder: Path, password: str) -> None:
        super().__init__(folder, **{
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_AUTH_ADMIN_USERNAME": self.ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password, "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        })  # fmt: skip
        self.password = password

    def command(self) -> list[str]:
        command = super().command()
        (self.folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{self.folder / 'users'}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return [*command, "--app-name", "basic-auth"]

    def login(self) -> dict[str, str]:
        """What the client reads of it."""
        return {"MLFLOW_TRACKING_USERNAME": self.ADMIN, "MLFLOW_TRACKING_PASSWORD": self.password}

    def change_password(self, new: str) -> None:
        """From now on the server refuses the old one."""
        body = {"username": self.ADMIN, "password": new, "current_password": self.password}
        token = base64.b64encode(f"{self.ADMIN}:{self.password}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        place = f"{self.uri}/api/2.0/mlflow/users/update-password"
        urllib.request.urlopen(
            urllib.request.Request(place, json.dumps(body).encode(), headers, method="PATCH"), timeout=60
        ).close()
        self.password = new
