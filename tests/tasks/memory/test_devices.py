"""Devices by name, and those of a machine, found without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.machine import machine_name
from tasks.memory.devices import device_here, named_device

GIB = 2**30
CARD = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\n"


def machine(root: Path, *, total_gib: int = 23, limit_gib: int | None = None, card: str | None = None) -> Path:
    """A file system's root that says so."""
    files = {
        "proc/meminfo": f"MemTotal:       {total_gib << 20} kB\nMemFree: 1 kB\n",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fine CPU\n",
        "sys/fs/cgroup/memory.max": "max\n" if limit_gib is None else f"{limit_gib * GIB}\n",
    }
    if card is not None:
        files["proc/driver/nvidia/gpus/0000:01:00.0/information"] = card
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("h100", "cuda", 80 * 10**9), ("A100-40", "cuda", 40 * 10**9), ("cpu:24GiB", "cpu", 24 * GIB),
        ("cpu:1.5 GiB", "cpu", 3 * GIB // 2), ("gpu:48GB", "cuda", 48 * 10**9),
    ],
)  # fmt: skip
def test_a_device_by_name(name: str, kind: str, size: int) -> None:
    found = named_device(name)
    assert (found.kind, found.bytes) == (kind, size)


@pytest.mark.parametrize("name", ["h101", "", "cpu", "cpu:24", "cpu:-1GiB", "tpu:8GiB"])
def test_one_that_is_not_known_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=r"wanted one of t4, l4, .*h100.*cpu:24GiB"):
        named_device(name)


def test_a_tenth_stays_free() -> None:
    device = named_device("cpu:10GiB")
    assert device.fits(9 * GIB)
    assert not device.fits(9 * GIB + 1)


def test_a_cpus_memory_is_what_a_container_may_use(tmp_path: Path) -> None:
    assert device_here("auto", machine(tmp_path / "a")).bytes == 23 * GIB
    assert device_here("auto", machine(tmp_path / "b", limit_gib=4)).bytes == 4 * GIB


def test_a_gpu_is_taken_unless_the_cpu_is_asked_for(tmp_path: Path) -> None:
    root = machine(tmp_path, card=CARD)
    found = device_here("auto", root)
    assert (found.name, found.kind, found.bytes) == ("NVIDIA H100 80GB HBM3", "cuda", 80 * 10**9)
    assert device_here("cpu", root).kind == "cpu"


def test_a_card_whose_name_has_no_size_is_known_by_its_model(tmp_path: Path) -> None:
    assert device_here("auto", machine(tmp_path, card="Model: Tesla T4\n")).bytes == 16 * 10**9
    assert device_here("auto", machine(tmp_path / "4090", card="Model: NVIDIA GeForce RTX 4090\n")).bytes == 24 * 10**9


def test_a_machine_in_words(tmp_path: Path) -> None:
    assert machine_name(machine(tmp_path)).startswith("Fine CPU x ")
    assert machine_name(machine(tmp_path, card=CARD)).endswith(", NVIDIA H100 80GB HBM3")
