"""One GPU is one slot: a lock for each, of this whole machine, which the kernel drops when its holders die.

It is not below `$ALIGN_HOME`, since two homes on one machine share its GPUs. `execution.slot` names further ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from artifacts.errors import UserError
from artifacts.locking import locked, wait_until
from artifacts.machine import ROOT, gpus
from tasks.job import Job

FOLDER = Path("/tmp/alignflow-slots")
"""Of the machine, whoever uses it; `$ALIGN_SLOTS` names another, for containers that share GPUs and a folder, say."""


@dataclass(frozen=True)
class Slot:
    """What one stage can have at a time."""

    name: str
    shown: str
    device: str | None = None
    """A GPU as `CUDA_VISIBLE_DEVICES` has it."""


@dataclass(frozen=True)
class Holder:
    """Who has a slot, as it stands in the lock's file."""

    run: str | None
    stage: str
    process: int

    def __str__(self) -> str:
        run = f"run {self.run}, " if self.run else ""
        return f"{run}stage {self.stage}, process {self.process}"


@dataclass(frozen=True)
class Needed:
    """All of `named`, and any `count` of the GPUs."""

    named: tuple[Slot, ...] = ()
    gpus: tuple[Slot, ...] = ()
    count: int = 0

    @classmethod
    def by(cls, job: Job, root: Path = ROOT) -> Needed:
        """What a stage takes: nothing, if it computes on a CPU and no slot is named."""
        execution = job.execution
        if not job.stage().computes():
            return cls()
        processes = execution.launch.processes if job.in_several() else 1
        named = (Slot(f"slot-{execution.slot}", f"the slot {execution.slot!r}"),) if execution.slot else ()
        found = () if execution.device == "cpu" else tuple(gpu_slots(root))
        return cls(named, found, min(processes, len(found)))


def gpu_slots(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> Iterator[Slot]:
    """The GPUs that this process may use, in the order in which CUDA counts them; found without torch."""
    there = gpus(root)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        visible = ",".join(str(gpu.number) for gpu in there)
    for one in (part.strip() for part in visible.split(",")):
        if one in ("", "-1"):  # CUDA sees none of those after it
            return
        matching = [gpu for gpu in there if one == str(gpu.number) or (gpu.uuid or "").startswith(one)]
        if matching:
            yield Slot(f"gpu-{matching[0].address.replace(':', '-')}", f"the {matching[0].shown}", one)
        elif not one.isdecimal():  # a part of one, which has a name of its own
            yield Slot(f"gpu-{one.replace('/', '-')}", f"the GPU {one}", one)


@contextmanager
def taken(needed: Needed, holder: Holder, waiting: Callable[[str], None]) -> Iterator[Taken]:
    """Hold what is needed; while somebody else does, `waiting` is told who, again and again, and may raise.

    All of it or nothing is taken, so that two that each have half never wait for each other.
    """
    if not needed.named and not needed.count:
        yield Taken((), ())
        return
    folder = slots_folder()
    held: dict[Slot, int] = {}
    blocking: list[str] = []

    def attempt() -> bool:
        blocking.clear()
        for slot in needed.named:
            _try(slot, folder, held, blocking)
        for slot in needed.gpus:
            if len(held) < len(needed.named) + needed.count:
                _try(slot, folder, held, blocking)
        return len(held) == len(needed.named) + needed.count

    def wait() -> None:
        _release(held)
        waiting("; ".join(blocking))

    try:
        wait_until(attempt, wait)
        for fd in held.values():
            with suppress(OSError):  # of another user, who let us lock it only
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(asdict(holder)).encode(), 0)
        yield Taken(tuple(held), tuple(held.values()))
    finally:
        _release(held)


@dataclass(frozen=True)
class Taken:
    """Slots that are held, and their locks' descriptors, which a trainer inherits."""

    slots: Sequence[Slot]
    locks: Sequence[int]

    @property
    def environment(self) -> dict[str, str]:
        """What lets a trainer see the GPUs that it was given, and no others."""
        devices = [slot.device for slot in self.slots if slot.device is not None]
        if not devices:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(devices),
                "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}  # fmt: skip


def held_slots() -> Iterator[tuple[str, str]]:
    """The slots of this machine that somebody holds, and who."""
    for path in sorted(_folder().glob("*")):
        fd = _open(path)
        try:
            if not locked(fd):
                yield path.name, _holder_of(fd)
        finally:
            os.close(fd)


def _folder() -> Path:
    return Path(os.environ.get("ALIGN_SLOTS") or FOLDER)


def slots_folder() -> Path:
    """Where the locks are; made for all users of the machine. Raises UserError if nothing can be there."""
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # it is somebody else's, who has done so
            folder.chmod(0o1777)
    except OSError as error:
        raise UserError(
            f"ALIGN_SLOTS: wanted a folder for the machine's slots, got {folder} ({error.strerror}); "
            "set ALIGN_SLOTS to one that can be made"
        ) from error
    return folder


def _try(slot: Slot, folder: Path, held: dict[Slot, int], blocking: list[str]) -> None:
    """Take a slot, or say who has it."""
    fd = _open(folder / slot.name)
    if locked(fd):
        held[slot] = fd
    else:
        blocking.append(f"{slot.shown}, held by {_holder_of(fd)}")
        os.close(fd)


def _open(path: Path) -> int:
    """A lock's file, perhaps another user's: that one may be opened, but neither with O_CREAT nor to write."""
    with suppress(FileExistsError, PermissionError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.fchmod(fd, 0o644)  # whatever the umask says
        return fd
    for access in (os.O_RDWR, os.O_RDONLY):
        with suppress(FileNotFoundError, PermissionError):
            return os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC)
    raise UserError(
        f"{path}: wanted a file that can be read, for a slot; remove it or set ALIGN_SLOTS to another folder"
    )


def _holder_of(fd: int) -> str:
    try:
        return str(Holder(**json.loads(os.pread(fd, 4096, 0))))
    except (ValueError, TypeError):  # it has not written yet
        return "another process"


def _release(held: dict[Slot, int]) -> None:
    for fd in held.values():
        os.close(fd)
    held.clear()
