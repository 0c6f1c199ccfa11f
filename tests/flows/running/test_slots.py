"""Real locks between real processes, and the GPUs of machines that are described in files."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifacts.errors import InterruptedStage
from artifacts.machine import gpu_name, gpus
from flows.running.shown_slots import shown_name
from flows.running.slots import Holder, Needed, Slot, gpu_slots, taken
from tasks.context import Execution
from tasks.job import Job
from tasks.parallel.settings import Launch
from tests.conftest import ROOT

HOLD = """
import sys, time
from flows.running.slots import Holder, Needed, Slot, taken
named = tuple(Slot(name, f"the {name}") for name in sys.argv[1:])
with taken(Needed(named=named), Holder("tiny-1", "dpo", 4711), print) as have:
    print("held", flush=True)
    time.sleep(60)
"""
ME = Holder("tiny-2", "sft", 1)
UUIDS = ("GPU-aa11", "GPU-bb22", "GPU-cc33")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test, since the machine may be at work."""
    monkeypatch.setenv("ALIGN_SLOTS", str(tmp_path / "slots"))
    return tmp_path / "slots"


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that has these slots."""
    started = []

    def start(*names: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def machine(root: Path, *uuids: str) -> Path:
    """A machine whose driver tells of these GPUs."""
    for number, uuid in enumerate(uuids):
        card = root / f"proc/driver/nvidia/gpus/0000:{number}a:00.0"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t NVIDIA H100\nIRQ:   \t\t 28\nGPU UUID: \t {uuid}\n")
    return root


def slots(*names: str) -> tuple[Slot, ...]:
    return tuple(Slot(name, f"the {name}", name) for name in names)


def test_one_waits_is_told_for_whom_and_has_it_when_the_kernel_drops_the_lock_of_the_killed(hold) -> None:
    other, told, killed = hold("GPU 0 (H100)"), list[str](), list[float]()

    def kill_soon() -> None:
        killed.append(time.monotonic())
        other.kill()

    threading.Timer(0.5, kill_soon).start()
    with taken(Needed(named=slots("GPU 0 (H100)")), ME, told.append):
        assert time.monotonic() - killed[0] < 2
    assert set(told) == {"the GPU 0 (H100), held by run tiny-1, stage dpo, process 4711"}


def test_a_trainer_that_inherited_the_lock_keeps_the_slot(hold) -> None:
    told: list[str] = []
    with taken(Needed(named=slots("a")), ME, told.append) as have:
        trainer = subprocess.Popen(["sleep", "60"], pass_fds=have.locks)
    threading.Timer(0.3, trainer.kill).start()
    with taken(Needed(named=slots("a")), ME, told.append):
        assert set(told) == {"the a, held by run tiny-2, stage sft, process 1"}
    trainer.wait()


def test_of_several_gpus_any_that_is_free_is_taken_and_the_trainer_sees_no_other(hold) -> None:
    hold("a")
    with taken(Needed(gpus=slots("a", "b", "c"), count=1), ME, lambda _: pytest.fail("waited")) as have:
        assert have.environment["CUDA_VISIBLE_DEVICES"] == "b"
        with taken(Needed(gpus=slots("a", "b", "c"), count=1), ME, lambda _: pytest.fail("waited")) as more:
            assert more.environment["CUDA_VISIBLE_DEVICES"] == "c"


def test_whoever_needs_more_than_is_free_takes_nothing_meanwhile(hold) -> None:
    other, waited = hold("a"), threading.Event()

    def both() -> None:
        with taken(Needed(gpus=slots("a", "b"), count=2), ME, lambda _: waited.set()):
            pass

    waiting = threading.Thread(target=both)
    waiting.start()
    assert waited.wait(20)
    told: list[str] = []
    with taken(Needed(gpus=slots("b"), count=1), ME, told.append):
        assert waiting.is_alive() and len(told) < 3
    other.kill()
    waiting.join(20)
    assert not waiting.is_alive()


def test_whoever_waits_may_give_up_and_leaves_nothing_held(hold) -> None:
    hold("b")

    def give_up(who: str) -> None:
        raise InterruptedStage(who)

    with pytest.raises(InterruptedStage), taken(Needed(named=slots("a", "b")), ME, give_up):
        pass
    with taken(Needed(named=slots("a")), ME, lambda _: pytest.fail("waited")):
        pass


def test_homes_share_a_machines_slots_and_other_users_may_lock_them(folder: Path) -> None:
    with taken(Needed(named=slots("a")), ME, lambda _: None):
        assert folder.stat().st_mode & 0o7777 == 0o1777
        assert (folder / "a").stat().st_mode & 0o777 == 0o644


def test_gpus_are_known_by_their_place_on_the_bus_since_an_unused_one_has_no_uuid_yet(tmp_path: Path) -> None:
    root = machine(tmp_path, "GPU-????????-????", "GPU-bb22")
    assert [(gpu.number, gpu.address, gpu.uuid) for gpu in gpus(root)] == [
        (0, "0000:0a:00.0", None), (1, "0000:1a:00.0", "GPU-bb22"),
    ]  # fmt: skip
    assert gpu_name(root) == "NVIDIA H100" and gpus(tmp_path / "without") == []


@pytest.mark.parametrize(
    ("visible", "wanted"),
    [
        (None, ["0", "1", "2"]), ("", []), ("-1", []), ("2,0", ["2", "0"]), ("0,-1,2", ["0"]), ("GPU-bb", ["GPU-bb"]),
        ("7", []),
    ],
)  # fmt: skip
def test_cuda_visible_devices_is_respected(tmp_path: Path, visible: str | None, wanted: list[str]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [slot.device for slot in gpu_slots(machine(tmp_path, *UUIDS), environment)] == wanted


def test_a_gpu_has_one_name_however_it_is_asked_for(tmp_path: Path) -> None:
    root = machine(tmp_path, *UUIDS)
    named = [next(gpu_slots(root, {"CUDA_VISIBLE_DEVICES": one})) for one in ("1", "GPU-bb22")]
    assert {slot.name for slot in named} == {"gpu-0000-1a-00.0"} and named[0].shown == "the GPU 1 (NVIDIA H100)"
    part = next(gpu_slots(root, {"CUDA_VISIBLE_DEVICES": "MIG-1/2"}))
    assert part.name == "gpu-MIG-1-2"


@pytest.fixture
def needed(tiny_llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Needed]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    root = machine(tmp_path / "machine", *UUIDS)

    def of(uses: str, execution: Execution) -> Needed:
        from tasks.registry import stage_class

        fields = {"source": "builtin:tiny-llama"} if uses == "base" else {"base": tiny_llama}
        stage = stage_class(uses).model_validate(fields)
        return Needed.by(Job.of(stage, uses=uses, key="0" * 64, seed=0, execution=execution, draft=tmp_path), root)

    return of


def test_a_stage_takes_a_gpu_if_it_computes_on_one(needed: Callable[..., Needed]) -> None:
    assert needed("quantize", Execution()).count == 1 and len(needed("quantize", Execution()).gpus) == 3
    assert needed("quantize", Execution(device="cpu")) == Needed()
    assert needed("base", Execution(slot="mine")) == Needed()
    assert [slot.name for slot in needed("quantize", Execution(device="cpu", slot="mine")).named] == ["slot-mine"]


def test_several_processes_are_for_training_stages(needed: Callable[..., Needed]) -> None:
    assert needed("quantize", Execution(launch=Launch(processes=2))).count == 1


def test_a_server_shows_a_slot_under_the_machines_name_where_the_hosts_is_a_containers(monkeypatch) -> None:
    slot = Slot("gpu-0", "the first GPU")
    assert shown_name(slot) == f"{socket.gethostname()}-gpu-0"
    monkeypatch.setenv("ALIGN_MACHINE", "rack-7")
    assert shown_name(slot) == "rack-7-gpu-0"
