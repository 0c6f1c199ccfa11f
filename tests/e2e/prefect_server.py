"""A real Prefect server."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from tests.e2e.servers import Server


class Prefect(Server):
    """Its database is in the PREFECT_HOME of `environment`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__("/api/health")
        self.given = environment
        self.api = f"http://127.0.0.1:{self.port}/api"

    def command(self) -> list[str]:
        prefect = str(Path(sys.executable).parent / "prefect")
        return [prefect, "server", "start", "--port", str(self.port), "--no-ui"]

    def environment(self) -> dict[str, str]:
        return {**self.given, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """What its API answers. With SQLite it often says 503 for a locked database; Prefect's client asks again."""
        data = None if body is None else json.dumps(body).encode()
        content = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.api}{path}", data, content, method=method)
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return json.loads(answer.read() or b"null")
            except HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
