"""What a machine computes with, in words, and found without any library of a GPU's."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path("/")


def machine_name(root: Path = ROOT) -> str:
    """The processor, how many cores of it, and the GPU: what a pace of training belongs to."""
    gpu = gpu_name(root)
    return f"{_processor(root)} x {os.cpu_count()}" + (f", {gpu}" if gpu else "")


def gpu_name(root: Path = ROOT) -> str | None:
    """The first GPU as its driver calls it; None without one."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        if found := re.search(r"^Model:\s*(.+?)\s*$", path.read_text(), re.MULTILINE):
            return found[1]
    return None


def _processor(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return os.uname().machine
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return found[1] if found else os.uname().machine
