"""Ports: the usual ones if they are free, or the next; those that a user names, or a reason why not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from flows.cli import main
from flows.servers import choosing, ports
from flows.servers.choosing import Asked, new_servers
from flows.servers.processes import Started
from flows.servers.state import Servers, state_file
from tests.e2e.servers import free_port

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_usual_port_or_the_next_that_is_free(taken, monkeypatch):
    usual = free_port()
    assert ports.next_free(HOST, usual) == usual
    assert ports.next_free(HOST, taken) > taken
    assert ports.next_free(HOST, usual, {usual}) > usual
    monkeypatch.setattr(choosing, "PREFECT_PORT", taken)
    monkeypatch.setattr(choosing, "MLFLOW_PORT", taken)
    found = new_servers(Asked())
    assert found.mlflow_port > found.prefect_port > taken


def test_a_named_port_that_is_taken_is_refused_with_who_has_it(home, taken, capsys):
    assert main(["up", "--mlflow-port", str(taken)]) == 2
    said = capsys.readouterr().err
    assert f"--mlflow-port {taken}: process {os.getpid()} (" in said and "name another port" in said
    assert not state_file(home).exists()


def test_a_server_of_another_version_on_a_named_port_is_named(home, old_prefect, capsys):
    assert main(["up", "--prefect-port", str(old_prefect)]) == 2
    assert "listens there and answers as Prefect 3.1.0" in capsys.readouterr().err


def test_two_ports_are_two(home, capsys):
    port = str(free_port())
    assert main(["up", "--prefect-port", port, "--mlflow-port", port]) == 2
    assert "wanted two ports" in capsys.readouterr().err


def test_a_host_that_is_none_of_this_machines_is_refused(home, capsys):
    assert main(["up", "--host", "192.0.2.1"]) == 2  # of the addresses that are nobody's
    assert "--host: wanted an address of this machine, got '192.0.2.1'" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "file"))
    assert main(["up"]) == 2
    assert "$ALIGN_HOME: wanted a folder that can be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prefect.db", "mlflow.db"])
def test_a_file_that_is_no_database_is_refused_before_anything_starts(home, name, capsys):
    home.mkdir()
    (home / name).write_text("no database " * 100)
    assert main(["up"]) == 2
    assert f"{home / name}: wanted a database that can be read and written" in capsys.readouterr().err
    assert not state_file(home).exists() and not (home / "up" / "prefect.log").exists()


def test_what_is_up_is_not_moved(home, capsys):
    processes = {"prefect": Started.of(os.getpid())}
    Servers("token", HOST, 4207, 5007, "/", 1, ready=True, processes=processes).save(home)
    assert main(["up", "--prefect-port", "4300"]) == 2
    assert "--prefect-port 4300: what is up has 4207; `align down` first" in capsys.readouterr().err


def test_only_ports_are_taken_for_ports(capsys):
    with pytest.raises(SystemExit):
        main(["up", "--prefect-port", "70000"])
    assert "wanted a port, 1 to 65535" in capsys.readouterr().err
