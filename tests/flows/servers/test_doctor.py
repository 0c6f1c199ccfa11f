"""`align doctor`: what is wrong is found, named, and has a remedy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from artifacts.store import Store
from flows.cli import main
from flows.running.slots import Holder, Needed, Slot, taken
from flows.servers import doctor, home_checks, machine_checks, server_checks, versions
from flows.servers.findings import BROKEN, OK, WARNING, Finding
from flows.servers.processes import Started
from flows.servers.state import ROLES, Servers
from tests.e2e.servers import free_port


def of(findings: Iterator[Finding], level: str) -> list[Finding]:
    return [finding for finding in findings if finding.level == level]


@pytest.fixture(autouse=True)
def no_servers_named(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("ALIGN_SLOTS", str(tmp_path / "slots"))


def test_all_is_well_with_an_empty_home(home, capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == 0
    assert {"versions", "home", "disk", "memory", "devices", "servers", "ports"} == {
        finding["check"] for finding in found["findings"]
    }
    assert all(finding["do"] for finding in found["findings"] if finding["level"] != "ok")
    assert not home.exists()


def test_a_server_that_is_named_and_away_is_broken_with_status_1(home, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "MLflow does not answer" in said.out and "-> start it, or unset MLFLOW_TRACKING_URI" in said.out
    assert "1 broken" in said.err


def test_a_prefect_of_another_version_whose_pages_call_elsewhere(home, old_prefect, monkeypatch):
    server = f"http://127.0.0.1:{old_prefect}"
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    version, pages = of(server_checks.named_found(home), BROKEN)
    assert version.found == f"Prefect at {server}: wanted <3.10,>=3.8.8, got 3.1.0"
    (leases,) = of(server_checks.named_found(home), WARNING)
    assert "forgets who holds a slot" in leases.found and leases.do.endswith("lease_storage.filesystem")
    assert "call the API at http://127.0.0.1:1/api" in pages.found and f"PREFECT_UI_API_URL={server}/api" in pages.do


def test_an_mlflow_of_another_version(home, old_mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{old_mlflow}")
    (version,) = of(server_checks.named_found(home), BROKEN)
    assert version.found == f"MLflow at http://127.0.0.1:{old_mlflow}: wanted <3.18,>=3.17, got 1.30.0"


def test_a_library_out_of_its_range_and_one_that_is_not_there(home, tmp_path, monkeypatch):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["pydantic>=1,<2", "no-such-library>=1", "packaging"]\n')
    monkeypatch.setattr(versions, "PROJECT", project)
    old, missing = of(machine_checks.versions_found(home), BROKEN)
    assert old.found.startswith("pydantic: wanted <2,>=1, got 2.") and "pip install 'pydantic<2,>=1'" in old.do
    assert missing.found == "no-such-library: wanted >=1, got none"


def test_torch_that_can_not_be_imported_or_is_not_there(home, tmp_path, monkeypatch, capsys):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["torch>=2"]\n')
    monkeypatch.setattr(versions, "PROJECT", project)
    version = metadata.version

    def of(name):
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", of)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "torch: wanted >=2, got none" in said.out and "torch can't be imported" in said.out
    assert "mlflow 3" in said.out and "2 broken" in said.err


def test_a_gpu_that_can_not_be_asked_keeps_no_other_from_being_looked_at(home, monkeypatch):
    import torch

    def asked(index):
        if index == 0:
            raise RuntimeError("CUDA error: out of memory\nmore of that")
        return 9 << 30, 10 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", asked)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    _, full, well = machine_checks.devices_found(home)
    assert (full.level, full.found) == (BROKEN, "cuda:0 can't be used: CUDA error: out of memory")
    assert well.level == OK and well.found.startswith("cuda:1 H100: 9.0 of 10.0 GiB")


def test_whatever_a_check_runs_into_is_a_finding(home, monkeypatch, capsys):
    def devices_found(home):
        raise RuntimeError("no http://me:hidden@server/")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (devices_found,))
    assert main(["doctor"]) == 1
    assert "can't be looked at: RuntimeError: no http://server/" in capsys.readouterr().out


def test_too_little_room_on_the_disk(home, monkeypatch):
    monkeypatch.setattr(machine_checks, "NO_DISK", 1 << 60)
    (finding,) = of(machine_checks.disk_found(home), BROKEN)
    assert "GiB free" in finding.found and "align gc" in finding.do


def test_a_usual_port_that_somebody_has(home, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(server_checks, "PREFECT_PORT", port)
        monkeypatch.setattr(server_checks, "MLFLOW_PORT", free_port())
        (finding,) = of(server_checks.ports_found(home), WARNING)
    assert finding.found.startswith(f"{port}: process {os.getpid()} (") and "next free port" in finding.do


def test_one_of_three_that_is_gone_and_one_that_is_dumb(home):
    alive = Started.of(os.getpid())
    gone = replace(alive, start="1")
    processes = {"prefect": alive, "mlflow": gone, "serving": alive}
    ports = free_port(), free_port()
    Servers("t", "127.0.0.1", *ports, "/", 1, {"prefect": "3.1.0"}, ready=True, processes=processes).save(home)
    (older,) = of(server_checks.up_found(home), WARNING)
    assert older.found.startswith("prefect 3.1.0 is up, and 3.") and older.do == "`align down`, then `align up`"
    found = of(server_checks.up_found(home), BROKEN)
    assert [finding.found.split(";")[0] for finding in found] == [
        f"prefect is there (process {os.getpid()}) and does not answer",
        "mlflow has ended",
        f"serving is there (process {os.getpid()}) and does not answer",
    ]
    assert len(found) == len(ROLES) and found[1].do == "`align up` starts it again"


def test_a_database_that_is_damaged(home):
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    (finding,) = of(home_checks.databases_found(home), BROKEN)
    assert str(home / "mlflow.db") in finding.found and "align sync" in finding.do


HOLDS = """
import sys
from pathlib import Path
from artifacts.store import Store
with Store(Path(sys.argv[1])).lock("sft", "a" * 64):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_works_on_a_stage_and_whether_anything_comes_of_it(home):
    draft = Store(home).draft("sft", "a" * 64)
    draft.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        (finding,) = of(home_checks.locks_found(home), OK)
        assert finding.found.startswith(f"{draft.name} is worked on by process {process.pid} (")
        os.utime(draft, (0, 0))
        (finding,) = of(home_checks.locks_found(home), WARNING)
        assert f"process {process.pid} (" in finding.found and "untouched for" in finding.found
    finally:
        process.communicate("")
    assert list(home_checks.locks_found(home)) == []


def test_who_has_a_slot_of_the_machine(home, tmp_path):
    assert list(home_checks.slots_found(home)) == [] and not (tmp_path / "slots").exists()
    slot = Slot("gpu-0000-01-00.0", "the first GPU")
    with taken(Needed(named=(slot,)), Holder("tiny-1", "dpo", 4711), print):
        (finding,) = home_checks.slots_found(home)
    assert finding.found == "gpu-0000-01-00.0 is held by run tiny-1, stage dpo, process 4711"
    assert list(home_checks.slots_found(home)) == []


def test_a_run_whose_process_is_gone(home: Path):
    record = {"recipe": "r.yaml", "run_id": "r-1", "flow_run_id": None, "mlflow_run_id": None, "stages": []}
    (home / "runs" / "r-1").mkdir(parents=True)
    (home / "runs" / "r-1.json").write_text(json.dumps(record))
    (home / "runs" / "r-1" / "facts.json").write_text('{"status": "RUNNING"}')
    (finding,) = of(home_checks.lost_runs_found(home), WARNING)
    assert finding.found == "r-1: its process is gone without a word" and "align sync" in finding.do
