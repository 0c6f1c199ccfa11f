"""Processes of a stage, forked from this one, so that they need not import everything anew; `accelerate launch` itself
is gone through by the tests of `test_launching.py`."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import yaml

from tasks.job import Job
from tasks.parallel.launching import CONFIGS, members
from tests.tasks.forked import as_a_trainer


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def environment(job: Job, rank: int, port: int) -> dict[str, str]:
    """What `accelerate launch` would give a process."""
    launch = job.execution.launch
    found = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(launch.processes), "MASTER_ADDR": "127.0.0.1",
        "LOCAL_WORLD_SIZE": str(launch.processes), "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_MIXED_PRECISION": "no",
    }  # fmt: skip
    settings = yaml.safe_load((CONFIGS / f"{launch.mode}.yaml").read_text())
    if launch.mode == "fsdp":
        found |= {"ACCELERATE_USE_FSDP": "true"}
        found |= {name.upper(): str(value).lower() for name, value in settings["fsdp_config"].items()}
        found |= {
            name: settings["fsdp_config"][name.lower()] for name in ("FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE")
        }
    if launch.mode == "deepspeed":
        found |= {"ACCELERATE_USE_DEEPSPEED": "true"}
        for name, value in settings["deepspeed_config"].items():
            prefix = "ACCELERATE_" if name.startswith("gradient_") else "ACCELERATE_DEEPSPEED_"
            found[prefix + name.removesuffix("_flag").upper()] = str(value).lower()
    return found


def work(job: Job, rank: int, port: int, before: Callable[[int], None]) -> None:
    as_a_trainer(job.draft / "log.txt")
    os.environ.update(environment(job, rank, port))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of a trainer that ran in the process forked from
    before(rank)
    from tasks.parallel.member import main

    os._exit(main([str(job.draft / "job.json")]))


def nothing(rank: int) -> None:
    """Done before a process begins."""


class Members:
    """All processes of a job."""

    def __init__(self, job: Job, before: Callable[[int], None] = nothing) -> None:
        folder = members(job.draft)
        folder.mkdir(parents=True, exist_ok=True)
        for ending in folder.glob("*.json"):
            ending.unlink()
        port, fork = free_port(), multiprocessing.get_context("fork")
        self.log = job.draft / "log.txt"
        self.processes = [
            fork.Process(target=work, args=(job, rank, port, before)) for rank in range(job.execution.launch.processes)
        ]
        for process in self.processes:
            process.start()

    def end(self, timeout: float = 120) -> list[int]:
        """Their exit statuses; once one has failed the others are ended, as the launcher does."""
        left = list(self.processes)
        while left:
            ready = multiprocessing.connection.wait([process.sentinel for process in left], timeout)
            assert ready, self.log.read_text()
            for process in [one for one in left if one.sentinel in ready]:
                process.join()
                left.remove(process)
                if process.exitcode:
                    for other in left:
                        other.join(1)
                        other.kill()
        return [process.exitcode or 0 for process in self.processes]


def job_in(folder: Path, job: Job) -> Job:
    """The job in a folder of its own."""
    folder.mkdir(parents=True)
    moved = job.model_copy(update={"draft": folder})
    (folder / "job.json").write_text(moved.model_dump_json())
    return moved
