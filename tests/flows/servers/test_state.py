"""What is up is read in a moment; runs use it unless the user named other servers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows.cli import main
from flows.servers.processes import Started
from flows.servers.state import ROLES, Servers, named_prefect, own_mlflow, state_file, use_servers
from flows.tracking.mlflow_server import MlflowServer

NAMES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")


@pytest.fixture
def servers(home, monkeypatch, tmp_path) -> Servers:
    """All three up, as far as the state and the processes say; nothing named in the environment."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    alive = Started.of(os.getpid())
    return Servers(
        "token", "127.0.0.1", 4207, 5007, "/", 1, {"prefect": "3"}, True, dict.fromkeys(ROLES, alive)
    ).save(home)  # fmt: skip


def used() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in NAMES)


def test_what_is_up_is_used_without_being_told(home, servers):
    use_servers(home)
    assert used() == ("http://127.0.0.1:4207/api", "http://127.0.0.1:5007")
    assert own_mlflow(home) == "http://127.0.0.1:5007"


def test_each_command_but_those_of_the_servers_uses_them(home, servers):
    assert main(["up", "--status"]) == 1  # the ports are nobody's
    assert used() == (None, None)
    assert main(["runs"]) == 0
    assert used() == ("http://127.0.0.1:4207/api", "http://127.0.0.1:5007")


def test_the_users_own_servers_come_first(home, servers, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    use_servers(home)
    assert used() == ("http://127.0.0.1:4207/api", "http://team:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://team:4200/api")
    use_servers(home)
    assert used() == ("http://team:4200/api", "http://team:5000")


def test_so_does_the_server_of_the_active_prefect_profile(home, servers, tmp_path):
    (tmp_path / "prefect").mkdir()
    profiles = '[profiles.team]\nPREFECT_API_URL = "http://team:4200/api"\n[profiles.none]\n'
    (tmp_path / "prefect" / "profiles.toml").write_text(f'active = "team"\n{profiles}')
    use_servers(home)
    assert named_prefect() == "http://team:4200/api" and used()[0] is None
    (tmp_path / "prefect" / "profiles.toml").write_text(f'active = "none"\n{profiles}')
    use_servers(home)
    assert used()[0] == "http://127.0.0.1:4207/api"


def test_servers_that_have_not_answered_yet_or_are_gone_are_not_used(home, servers):
    servers.having(home, ready=False)
    use_servers(home)
    assert used() == (None, None)
    gone = replace(servers.processes["mlflow"], boot="before the last start of the machine")
    servers.having(home, processes={**servers.processes, "mlflow": gone})
    use_servers(home)
    assert used() == ("http://127.0.0.1:4207/api", None) and own_mlflow(home) is None
    loaded = Servers.load(home)
    assert loaded is not None and loaded.missing == ["mlflow"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}', '{"processes": {"prefect": {}}}'])
def test_a_state_that_makes_no_sense_is_none(home, text):
    state_file(home).parent.mkdir(parents=True)
    state_file(home).write_text(text)
    assert Servers.load(home) is None
    use_servers(home)


def test_a_server_on_this_homes_database_is_this_homes_own(home, servers, monkeypatch):
    """What it knows, the store has: nothing is fetched from it, and its artifacts are files to be linked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5007")
    assert MlflowServer(home).is_own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5008")
    assert not MlflowServer(home).is_own


def test_a_status_imports_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from flows.cli import main\n"
        "status = main(['up', '--status'])\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'pydantic', 'httpx', 'yaml'}\n"
        "print(status, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"ALIGN_HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "not up; `align up` starts it\n"
    assert done.stderr.splitlines()[-1] == "1 []"
