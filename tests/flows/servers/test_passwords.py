"""Servers that want a password, or have lost their database: said so by doctor and run, with what to correct."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from mlflow.exceptions import MlflowException

from artifacts.errors import UserError
from flows.servers import asking
from flows.servers.findings import BROKEN, OK, Finding
from flows.servers.passwords import mlflow_password, prefect_password
from flows.servers.server_checks import named_found
from flows.tracking.mlflow_server import MlflowServer

RIGHT = f"Basic {b64encode(b'team:word').decode()}"


class Guarded(BaseHTTPRequestHandler):
    """Says what Prefect and MLflow say, behind one name and password; `database` is whether it has one."""

    database = True
    open_to_all = ("/api/health", "/api/ready", "/health", "/ui-settings")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in self.open_to_all and self.headers.get("Authorization") != RIGHT:
            self.say(401, "You are not authenticated.")
        elif not self.database and (path == "/api/ready" or path.startswith("/api/2.0")):
            self.say(503 if path == "/api/ready" else 500, "{}")
        else:
            texts = {"/health": "OK", "/version": "3.17.2", "/api/admin/version": '"3.8.8"', "/ui-settings": "{}"}
            self.say(200, texts.get(path, "{}"))

    def say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def guarded(monkeypatch, tmp_path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Guarded)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(Guarded, "database", True)
    yield address
    server.shutdown()
    server.server_close()


def give(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"team:{word}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", word)


def findings(home) -> list[Finding]:
    return list(named_found(home))


def test_with_the_right_password_all_is_well(guarded, home, monkeypatch):
    give(monkeypatch, "word")
    assert [each.level for each in findings(home)] == [OK, OK]


def test_without_one_doctor_says_which_variables_to_set(guarded, home):
    prefect, mlflow = findings(home)
    assert prefect.level == mlflow.level == BROKEN
    assert prefect.found == f"Prefect at {guarded} wants a name and a password, and these are not they"
    assert prefect.do.startswith("set PREFECT_API_AUTH_STRING")
    assert mlflow.do == "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def test_with_a_wrong_one_it_says_which_to_correct(guarded, home, monkeypatch):
    give(monkeypatch, "wrod")
    assert [each.do.split()[:2] for each in findings(home)] == [
        ["correct", "PREFECT_API_AUTH_STRING"], ["correct", "MLFLOW_TRACKING_USERNAME"],
    ]  # fmt: skip


def test_a_database_that_is_away_is_named(guarded, home, monkeypatch):
    give(monkeypatch, "word")
    monkeypatch.setattr(Guarded, "database", False)
    prefect, mlflow = findings(home)
    assert prefect.found == f"Prefect at {guarded} is there, but can't reach its database"
    assert mlflow.found == f"MLflow at {guarded} is there, but can't reach its database"


def test_a_run_is_told_which_variables_mlflow_refuses(guarded, home, monkeypatch):
    give(monkeypatch, "wrod")
    with pytest.raises(UserError, match="correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        MlflowServer.reach(home, "tiny")
    assert isinstance(refused.value.__cause__, MlflowException)


def test_a_server_that_nobody_named_is_shown_no_password(guarded, monkeypatch):
    give(monkeypatch, "word")
    assert asking.what_is_there(guarded) is None
    assert "word" not in f"{prefect_password().do} {mlflow_password().do}"


def test_prefects_profile_has_a_password_too(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    profiles = tmp_path / "profiles.toml"
    profiles.write_text('active = "team"\n[profiles.team]\nPREFECT_API_AUTH_STRING = "team:word"\n')
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    assert prefect_password().header == {"Authorization": RIGHT}
