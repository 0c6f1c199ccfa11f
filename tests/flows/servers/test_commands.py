"""What each process is told: databases and artifacts of this home, and addresses that a browser can call."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.servers.choosing import Asked, new_servers
from flows.servers.commands import environment, mlflow_command, prefect_command, ui_api
from flows.servers.passwords import basic, own_password
from flows.servers.processes import Started
from flows.servers.state import Servers, profiles_file, use_servers
from flows.servers.verbs import unguarded


def servers(host: str) -> Servers:
    return Servers("token", host, 4207, 5007, "/", 1)


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_mlflow_serves_this_homes_database_and_keeps_artifacts_as_files():
    command = mlflow_command(servers("127.0.0.1"), Path("/some/home"))
    assert after(command, "--backend-store-uri") == "sqlite:////some/home/mlflow.db"
    assert after(command, "--default-artifact-root") == "file:///some/home/mlflow"
    assert "--no-serve-artifacts" in command and "--allowed-hosts" not in command


def test_where_other_machines_can_ask_mlflow_answers_their_browsers_and_no_other_page():
    command = mlflow_command(servers("0.0.0.0"), Path("/some/home"))
    hosts = after(command, "--allowed-hosts").split(",")
    assert {"127.0.0.1:5007", f"{socket.gethostname()}:5007"} <= set(hosts) and "*" not in "".join(hosts)
    assert after(command, "--cors-allowed-origins").split(",") == [f"http://{host}" for host in hosts]


def test_prefects_pages_call_the_port_that_was_chosen_by_a_name_that_browsers_know(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://team:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert ui_api(servers("127.0.0.1")) == "http://127.0.0.1:4207/api"
    assert ui_api(servers("0.0.0.0")) == f"http://{socket.gethostname()}:4207/api"
    prefect = environment(servers("127.0.0.1"), "prefect", home)
    assert prefect["PREFECT_SERVER_UI_API_URL"] == prefect["PREFECT_API_URL"] == "http://127.0.0.1:4207/api"
    assert prefect["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    # Its leases are files there: what two servers lend must not lie in one folder. Its settings stay the user's.
    assert prefect["PREFECT_HOME"] == str(home / "up" / "prefect")
    assert prefect["PREFECT_PROFILES_PATH"] == str(profiles_file())
    serving = environment(servers("127.0.0.1"), "serving", home)
    assert serving["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5007" and serving["ALIGN_HOME"] == str(home)
    assert "MLFLOW_TRACKING_URI" not in environment(servers("127.0.0.1"), "mlflow", home)


def test_prefect_answers_pages_of_its_own_and_those_that_the_user_names(home, monkeypatch):
    """Its own pages can, by whichever name they were opened; what starts is what the API is told to start."""

    def origins(of: Servers) -> list[str]:
        return environment(of, "prefect", home)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")

    assert "flows.servers.guarded_prefect" in prefect_command(servers("127.0.0.1"), home)
    assert origins(servers("127.0.0.1")) == ["http://127.0.0.1:4207", "http://localhost:4207"]
    assert "http://localhost" in origins(replace(servers("127.0.0.1"), prefect_port=80))  # browsers leave it out
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "https://align.example")
    monkeypatch.setattr(socket, "gethostname", lambda: "Box")
    monkeypatch.setattr(socket, "getfqdn", lambda: "Box.Corp")
    theirs = [one.address for each in psutil.net_if_addrs().values() for one in each if one.family == socket.AF_INET]
    assert set(origins(servers("0.0.0.0"))) >= {
        "https://align.example", *(f"http://{name}:4207" for name in ("box", "box.corp", *theirs)),
    }  # fmt: skip


def test_a_slot_that_is_taken_when_prefect_restarts_is_not_forgotten(home):
    storage = environment(servers("127.0.0.1"), "prefect", home)["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert storage == "prefect.server.concurrency.lease_storage.filesystem"


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:4207"), ("::", "http://[::1]:4207")])
def test_servers_for_all_are_reached_from_here_by_an_address_at_which_they_listen(host, url):
    assert servers(host).prefect == url
    assert url.removeprefix("http://").replace("4207", "5007") in after(
        mlflow_command(servers(host), Path("/h")), "--allowed-hosts"
    ).split(",")


def test_a_proxy_of_the_users_is_not_asked_for_them(home, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    for role in ("prefect", "mlflow", "serving"):
        assert environment(servers("10.0.0.1"), role, home)["NO_PROXY"] == "example.org,10.0.0.1"


def test_only_this_machine_reaches_them_unless_told(monkeypatch):
    assert Asked().host is None and new_servers(Asked()).host == "127.0.0.1"
    assert unguarded(servers("127.0.0.1")) == unguarded(servers("localhost")) == unguarded(servers("::1")) == []
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    (warning,) = unguarded(servers("0.0.0.0"))
    assert warning.startswith("warning: neither server asks for a password, and both can be reached at ")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:hunter2")
    (warning,) = unguarded(servers("10.0.0.1"))
    assert warning.startswith("warning: MLflow asks for no password") and "hunter2" not in warning


def test_a_password_of_prefect_reaches_its_clients(home, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:hunter2")
    assert environment(servers("127.0.0.1"), "prefect", home)["PREFECT_SERVER_API_AUTH_STRING"] == "me:hunter2"
    assert environment(servers("127.0.0.1"), "serving", home)["PREFECT_API_AUTH_STRING"] == "me:hunter2"


def test_the_password_of_a_server_that_is_up_is_known_in_another_shell(home, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    with subprocess.Popen(["sleep", "60"], env={"PREFECT_SERVER_API_AUTH_STRING": "me:hunter2"}) as process:
        up = replace(servers("127.0.0.1"), processes={"prefect": Started.of(process.pid)}, ready=True).save(home)
        try:
            assert own_password(up).header == basic("me:hunter2")
            assert environment(up, "serving", home)["PREFECT_API_AUTH_STRING"] == "me:hunter2"
            monkeypatch.setattr(os, "environ", dict(os.environ))
            for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
                os.environ.pop(name, None)
            use_servers(home)
            assert os.environ["PREFECT_API_AUTH_STRING"] == "me:hunter2"
        finally:
            process.kill()
