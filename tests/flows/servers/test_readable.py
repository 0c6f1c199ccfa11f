"""`align up` and `align doctor` say where served runs read, if that is not the folder of their recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.cli import main
from flows.servers import asking, server_checks
from flows.servers.processes import Started
from flows.servers.state import ROLES, Servers
from pipelines.allowed import ROOTS, SHIPPED


@pytest.fixture
def serve(home: Path, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Put a process with these roots in the place of all three."""
    started: list[subprocess.Popen[str]] = []

    def begin(roots: str) -> None:
        code = "import sys; print(flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={ROOTS: roots}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline()  # its environment is its own by now
        alive = dict.fromkeys(ROLES, Started.of(process.pid))
        Servers("t", "127.0.0.1", 1, 1, str(tmp_path), 1, {}, ready=True, processes=alive).save(home)

    yield begin
    for process in started:
        process.communicate()


def test_what_runs_may_not_read_is_said(
    serve: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve("")
    main(["up", "--status"])
    *_, looked, only = capsys.readouterr().out.splitlines()
    assert looked.startswith(f"recipes are looked up in {tmp_path};")
    assert only.startswith(f"served runs read only what is in {SHIPPED} (") and ROOTS in only


@pytest.mark.parametrize("below", ["", "/.."])
def test_where_they_may_read_the_folder_there_is_nothing_to_say(
    below: str, serve: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(os.pathsep.join(["/elsewhere", f"{tmp_path}{below}"]))
    main(["up", "--status"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"recipes are looked up in {tmp_path};")


def test_the_doctor_says_it_too(
    serve: Callable[[str], None], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("/elsewhere")
    monkeypatch.setattr(asking, "answers", lambda servers, role: role == "serving")
    *_, found = [each.found for each in server_checks.up_found(home)]
    assert found == f"deployments are served, with recipes from {tmp_path}; served runs read only what is in /elsewhere"
