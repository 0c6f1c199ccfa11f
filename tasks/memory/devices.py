"""Devices that a plan may be for, by name, or the one of this machine; found without torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError
from artifacts.machine import ROOT, gpu_name
from tasks.memory.parts import Kind

USABLE = 0.9
"""Of a device's memory: an estimate may be under by a tenth, and a GPU also holds its driver's and libraries' own."""
GIB = 1 << 30
SIZES = {
    "t4": 16, "l4": 24, "rtx3090": 24, "rtx4090": 24, "v100": 32, "a40": 48, "l40s": 48, "a100-40": 40, "a100-80": 80,
    "h100": 80, "h200": 141, "b200": 180, "mi250x": 64, "mi300x": 192,
}  # fmt: skip
"""Memory of one GPU (of mi250x one of its two halves) as its maker gives it, GB."""
GB = 10**9


@dataclass(frozen=True)
class Device:
    """Where a stage would run."""

    name: str
    kind: Kind
    bytes: int

    @property
    def usable(self) -> int:
        return int(USABLE * self.bytes)

    def fits(self, needed: int) -> bool:
        return needed <= self.usable

    def __str__(self) -> str:
        return f"{self.name}, {self.bytes / GIB:.1f} GiB"


def named_device(name: str) -> Device:
    """`h100`, or `cpu:24GiB`; raises UserError for one that is not known."""
    if name.lower() in SIZES:
        return Device(name.lower(), "cuda", SIZES[name.lower()] * GB)
    if found := re.fullmatch(r"(cpu|gpu):(\d+(?:\.\d+)?)\s*(GiB|GB|MiB)", name, re.IGNORECASE):
        unit = {"gib": GIB, "gb": GB, "mib": 1 << 20}[found[3].lower()]
        return Device(name, "cpu" if found[1].lower() == "cpu" else "cuda", int(float(found[2]) * unit))
    raise UserError(
        f"--device: wanted one of {', '.join(SIZES)}, or a size such as cpu:24GiB or gpu:48GiB, got {name!r}"
    )


def device_here(wanted: str, root: Path = ROOT) -> Device:
    """What this machine has for `execution.device`: its first GPU, if there is one and `cpu` is not asked for."""
    if wanted != "cpu" and (gpu := _gpu(root)):
        return gpu
    return Device("this machine's CPU", "cpu", _main_memory(root))


def _gpu(root: Path) -> Device | None:
    """From the driver's own account, else by the name of the card."""
    name = gpu_name(root)
    if name is None:
        return None
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    matching = [known for known in SIZES if known.partition("-")[0] in plain]
    told = re.search(r"(\d+)\s*GB", name)
    if told:
        return Device(name, "cuda", int(told[1]) * GB)
    return Device(name, "cuda", min(SIZES[known] for known in matching) * GB) if matching else None


def _main_memory(root: Path) -> int:
    """What the machine has, or what a container may use of it."""
    try:
        total = int(re.findall(r"^MemTotal:\s*(\d+)", (root / "proc/meminfo").read_text(), re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):  # not Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int((root / limit).read_text()))
        except (OSError, ValueError):  # no limit
            continue
    return total
