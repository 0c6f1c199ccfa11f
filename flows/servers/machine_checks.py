"""The machine: versions of libraries, room on the disk and in memory, devices."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from flows.addresses import reason
from flows.servers.findings import BROKEN, OK, WARNING, Finding
from flows.servers.versions import requirements

GIB = 1 << 30
LITTLE_DISK, NO_DISK = 10 * GIB, GIB
LITTLE_MEMORY = 3 * GIB
"""What the quickstart's largest stage takes, rounded up."""
DRIVER = Path("/proc/driver/nvidia/version")


def versions_found(home: Path) -> Iterator[Finding]:
    """Every library of `pyproject.toml` whose version is out of its range."""
    for one in (wanted := requirements()):
        got = _version(one.name)
        if got == "none" or not one.specifier.contains(got, prereleases=True):
            yield Finding("versions", BROKEN, f"{one.name}: wanted {one.specifier}, got {got}",
                          f"pip install '{one}', or `make clean` and `make .venv/.ready`")  # fmt: skip
    main = ", ".join(f"{name} {_version(name)}" for name in ("prefect", "mlflow", "torch"))
    yield Finding("versions", OK, f"{len(wanted)} libraries looked at: {main}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def disk_found(home: Path) -> Iterator[Finding]:
    """Room where outputs go."""
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    level = BROKEN if free < NO_DISK else WARNING if free < LITTLE_DISK else OK
    do = "" if level == OK else "`align gc` shows what can go; or set ALIGN_HOME to another disk"
    yield Finding("disk", level, f"{free / GIB:.1f} GiB free at {place}", do)


def memory_found(home: Path) -> Iterator[Finding]:
    """Memory that a training could have now, in this container if it is one."""
    free = _available()
    level = WARNING if free < LITTLE_MEMORY else OK
    do = "" if level == OK else "end what else takes memory; `align plan RECIPE` says how much each stage takes"
    yield Finding("memory", level, f"{free / GIB:.1f} GiB free", do)


def _available() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    found = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found = min(found, int(limit) - int((group / "memory.current").read_text()) + _cache(group))
    except (OSError, ValueError):  # no container, or one of another kind
        pass
    return found


def _cache(group: Path) -> int:
    """File cache of a container, which makes way for whoever wants the memory."""
    lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(lines.get("inactive_file", 0))


def devices_found(home: Path) -> Iterator[Finding]:
    """What torch would train on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # it is not there, or its libraries are not
        yield Finding("devices", BROKEN, f"torch can't be imported: {error}", "`make clean` and `make .venv/.ready`")
        return
    cores = len(os.sched_getaffinity(0))
    yield Finding("devices", OK, f"{cores} CPU cores ({torch.backends.cpu.get_cpu_capability()})")
    if not torch.cuda.is_available():
        if DRIVER.exists() or shutil.which("nvidia-smi"):
            yield Finding("devices", BROKEN, f"an NVIDIA driver is there, but torch {torch.__version__} can't use it",
                          "`nvidia-smi` must list the GPU, and torch be built for CUDA: see pytorch.org")  # fmt: skip
        return
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # such as out of memory, where others left no room for a context
            yield Finding("devices", BROKEN, f"cuda:{index} can't be used: {reason(error)}",
                          "`nvidia-smi` shows whether others fill it, or it needs a reset")  # fmt: skip
            continue
        taken = free < total / 2
        yield Finding(
            "devices", WARNING if taken else OK,
            f"cuda:{index} {torch.cuda.get_device_name(index)}: {free / GIB:.1f} of {total / GIB:.1f} GiB free",
            "someone else uses it: `nvidia-smi` shows who" if taken else "",
        )  # fmt: skip
