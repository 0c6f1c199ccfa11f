"""A stage in one process and in two, each in a folder of its own, with all that they log."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.job import Job
from tasks.parallel.launching import _ending_of, _together, members
from tasks.parallel.settings import Mode
from tests.tasks.forked import with_locks_of_its_own
from tests.tasks.parallel.members import Members
from tests.tasks.parallel.stages import FIELDS, execution
from tests.tasks.rl.runs import World


@pytest.fixture(scope="session", autouse=True)
def imported() -> Iterator[None]:
    """What the forked processes would import again, each of them."""
    import trl
    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # type: ignore[attr-defined]

    assert all((trl, DPOTrainer, RewardTrainer, SFTTrainer))
    yield


@dataclass(frozen=True)
class Ran:
    """A stage that has run."""

    job: Job

    @property
    def draft(self) -> Path:
        return self.job.draft

    def points(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.draft / "metrics.jsonl").read_text().splitlines()]

    def handle(self) -> Any:
        return self.job.stage().output("0" * 64, self.draft / "out")

    def log(self) -> str:
        return (self.draft / "log.txt").read_text()


def furthest(one: Ran, other: Ran, *names: str) -> float:
    """The largest difference in any of these metrics at any step; the same points must be there."""
    pairs = list(zip(one.points(), other.points(), strict=True))
    assert all(a["step"] == b["step"] and a["metrics"].keys() == b["metrics"].keys() for a, b in pairs)
    found = [abs(a["metrics"][name] - b["metrics"][name]) for a, b in pairs for name in names if name in a["metrics"]]
    assert found
    return max(found)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def uneven(kitchen: Any, base: Any) -> dict[str, Any]:
    """29 rows of unequal length (of feedback 30): in batches of 8 the last of an epoch is short."""
    of = {
        "demonstrations": {"source": "instructions.jsonl", "limit": 29},
        "preferences": {"source": "preferences.jsonl", "test_source": "validation.jsonl", "limit": 29},
        "feedback": {
            "source": "preferences.jsonl", "split_pairs": True, "test_source": "validation.jsonl", "limit": 15,
        },
    }  # fmt: skip
    return {form: kitchen.make("data", base=base.handle, form=form, **more).handle for form, more in of.items()}


@pytest.fixture(scope="session")
def job_of(
    kitchen: Any, base: Any, sft: Any, uneven: dict[str, Any], world: World, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Job]:
    """`job_of("sft", processes=2)`: its job, in a folder of its own."""

    def make(name: str, **more: Any) -> Job:
        uses = name.partition(" ")[0]
        fields = FIELDS[name](base.handle, sft.handle, uneven, world)
        draft = tmp_path_factory.mktemp("draft")
        how = execution(**more)
        stage = kitchen.stage(uses, **fields)
        assert stage.execution_problem(how) is None
        job = Job.of(stage, uses=uses, key="k" * 8, seed=0, execution=how, draft=draft)
        (draft / "job.json").write_text(job.model_dump_json())
        return job

    return make


@pytest.fixture(scope="session")
def ran(job_of: Callable[..., Job]) -> Callable[..., Ran]:
    """The stage in so many processes, made once for all tests that ask for the same."""
    made: dict[str, Ran] = {}

    def get(name: str, processes: int = 1, mode: Mode = "ddp", **more: Any) -> Ran:
        more = {field: value for field, value in more.items() if value is not None}
        wanted = f"{name} {processes} {mode} {more}"
        if wanted not in made:
            job = job_of(name, processes=processes, mode=mode, **more)
            assert run_here(job) == [0] * processes, (job.draft / "log.txt").read_text()
            made[wanted] = Ran(job)
        return made[wanted]

    return get


def run_here(job: Job) -> list[int]:
    """The exit status of each of its processes; one alone is forked too, so that it leaves nothing behind."""
    if job.in_several():
        statuses = Members(job).end()
        ended = _together([_ending_of(members(job.draft), rank) for rank in range(len(statuses))])
        (job.draft / "result.json").write_text(json.dumps(ended.result))
        return statuses
    pid = os.fork()
    if pid == 0:
        with_locks_of_its_own()
        out = os.open(job.draft / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from tasks.__main__ import main

        os._exit(main([str(job.draft / "job.json")]))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
