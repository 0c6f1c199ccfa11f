"""What a stage says of its memory is its own, whoever started it."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = "from tasks.ending import peak_memory; held = bytearray({size}); print(peak_memory())"


def peak(size: int) -> int:
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(size=size)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return int(said.stdout)


def test_the_peak_is_what_the_process_itself_had() -> None:
    """`getrusage` counts what its parent had when it started it."""
    small = peak(0)
    held = bytearray(b"x" * (small + (256 << 20)))  # this process is larger now
    assert peak(0) < len(held)
    assert peak(512 << 20) > small + (500 << 20)
