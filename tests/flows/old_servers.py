"""Servers of other versions, as far as they say who they are: whatever else they are asked they do not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

PREFECT = {
    "/api/admin/version": "3.1.0",
    "/api/health": True,
    "/api/admin/settings": {
        "server": {"concurrency": {"lease_storage": "prefect.server.concurrency.lease_storage.memory"}}
    },
    "/ui-settings": {"api_url": "http://127.0.0.1:1/api"},
}
"""Its pages call the usual port."""
MLFLOW = {"/health": "OK", "/version": "1.30.0"}


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, answers: dict[str, Any], *given: Any) -> None:
        self.answers = answers
        super().__init__(*given)

    def do_GET(self) -> None:
        known = self.answers.get(self.path)
        said = known if isinstance(known, str) and self.answers is MLFLOW else json.dumps(known)
        self.send_response(404 if known is None else 200)
        self.end_headers()
        self.wfile.write(said.encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(422)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def old_server(answers: dict[str, Any]) -> Iterator[int]:
    """The port on which it listens, in this process."""
    server = HTTPServer(("127.0.0.1", 0), partial(_Handler, answers))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
