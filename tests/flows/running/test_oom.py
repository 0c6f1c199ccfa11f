"""Killed for memory is what the kernel says it is; a kill is not one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.running.oom import KernelWitness, kills_in_our_group

GREEDY = "import sys; sys.stdin.read(1); x = [b'x' * (1 << 20) for _ in range(4096)]"


@pytest.fixture
def narrow_group() -> Iterator[Path]:
    """A control group with 64 MiB, of whichever version this machine has."""
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.exists() else Path("/sys/fs/cgroup")) / f"align-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = "memory.limit_in_bytes" if old.exists() else "memory.max"
        (group / limit).write_text(str(64 << 20))
    except OSError:
        pytest.skip("may not make a control group")
    yield group
    deadline = time.monotonic() + 10
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.rmdir()


def test_the_kernels_kill_is_told_from_any_other(narrow_group):
    witness = KernelWitness()
    greedy = subprocess.Popen([sys.executable, "-c", GREEDY], stdin=subprocess.PIPE)
    patient = subprocess.Popen([sys.executable, "-c", GREEDY], stdin=subprocess.PIPE)
    (narrow_group / "cgroup.procs").write_text(str(greedy.pid))
    greedy.communicate(b"x")
    patient.send_signal(signal.SIGKILL)
    patient.communicate()
    assert greedy.returncode == patient.returncode == -signal.SIGKILL
    assert witness.killed_for_memory(greedy.pid)
    assert not witness.killed_for_memory(patient.pid)
    assert not KernelWitness().killed_for_memory(4_000_000)


def test_where_the_kernels_log_is_closed_our_group_is_asked(narrow_group, monkeypatch, tmp_path):
    """In a process inside that group, since only its own group's counter counts."""
    probe = f"""
import subprocess, sys
from pathlib import Path
from flows.running import oom
oom.KMSG = Path({str(tmp_path / "closed")!r})
Path({str(narrow_group / "cgroup.procs")!r}).write_text("0")
witness = oom.KernelWitness()
innocent = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
print(witness.killed_for_memory(1), innocent.returncode)
greedy = subprocess.run([sys.executable, "-c", {GREEDY!r}], input=b"x")
print(witness.killed_for_memory(1), greedy.returncode)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["False -9", "True -9"], done.stderr


def test_the_count_of_our_own_group_can_be_read_or_is_0():
    assert kills_in_our_group() >= 0
