"""A real Prefect server, to be stopped and started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.mlflow_servers import answers, free_port


class Prefect:
    """A server on its port, with its database in the PREFECT_HOME of `environment`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self.environment = {**environment, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "prefect"), "server", "start", "--port", str(self.port), "--no-ui"],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while not answers(self.port, "/api/health"):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.3)

    def stop(self) -> None:
        """As a crash does."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What its API answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())
