"""What a machine computes with, in words, and found without any library of a GPU's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


def machine_name(root: Path = ROOT) -> str:
    """The processor, how many cores of it, and the GPU: what a pace of training belongs to."""
    gpu = gpu_name(root)
    return f"{_processor(root)} x {os.cpu_count()}" + (f", {gpu}" if gpu else "")


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    number: int
    """Among those of the machine, in the order of the bus."""
    model: str
    """As its driver calls it."""
    address: str
    """On the bus: the same in every container, and known before anybody has used the card, unlike its UUID."""
    uuid: str | None

    @property
    def shown(self) -> str:
        return f"GPU {self.number} ({self.model})"


def gpus(root: Path = ROOT) -> list[Gpu]:
    """Every GPU whose driver tells of it, in the order of the bus."""
    found: list[Gpu] = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        told = dict(re.findall(r"^([^:\n]+):\s*(.+?)\s*$", path.read_text(), re.MULTILINE))
        if "Model" in told:
            uuid = told.get("GPU UUID", "?")
            known = None if "?" in uuid else uuid
            found.append(Gpu(len(found), told["Model"], path.parent.name, known))
    return found


def gpu_name(root: Path = ROOT) -> str | None:
    """The first GPU as its driver calls it; None without one."""
    return next((gpu.model for gpu in gpus(root)), None)


def _processor(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return os.uname().machine
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return found[1] if found else os.uname().machine
