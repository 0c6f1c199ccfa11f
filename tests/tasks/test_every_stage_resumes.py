"""Every stage that there is, killed at any moment and started again, ends with the bytes of an undisturbed run.

A stage that is added later must be given its case here. Processes are forked from this one, so that they need not
import everything anew; they are killed for real.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artifacts.jsonl import read_jsonl
from tasks.context import Execution
from tasks.job import Job
from tasks.registry import STAGES
from tasks.training import checkpoints
from tests.left import left_in
from tests.tasks.forked import as_a_trainer

SCORER = f"{Path(__file__).parent / 'rl' / 'scorers.py'}:letters"
TRAINING = {"learning_rate": 3e-3, "epochs": 2.5, "eval_rows": 4}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.1}
SAMPLING = {"max_new_tokens": 6, "learning_rate": 1e-2, "eval_rows": 3, "programs": {SCORER: 1.0}}
GROUPS = {**SAMPLING, "num_generations": 4, "batch_size": 8, "total_episodes": 40}
EXECUTION = Execution(threads=1, device="cpu", micro_batch=4, save_interval=1, keep_checkpoints=1)
"""32 rows in batches of 8: checkpoints amid an epoch and at its end."""

CASES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "base": lambda get: {"source": "builtin:tiny-llama"},
    "quantize": lambda get: {"base": get("base")},
    "data": lambda get: {"base": get("base"), "form": "preferences", "source": "preferences.jsonl", "limit": 64},
    "adopt": lambda get: {"base": get("base"), "source": str(get("sft").path)},
    "sft": lambda get: {
        "base": get("base"), "data": get("demonstrations"), **TRAINING,
        "lora": {**DROPOUT, "modules_to_save": ["embed_tokens"]},
    },
    "reward": lambda get: {"base": get("base"), "data": get("pairs"), "lora": DROPOUT, **TRAINING},
    "dpo": lambda get: {"policy": get("sft"), "data": get("pairs"), "eval_interval": 3, **TRAINING},
    "simpo": lambda get: {"policy": get("sft"), "data": get("pairs"), "eval_interval": 3, **TRAINING},
    "orpo": lambda get: {
        "policy": get("base"), "data": get("pairs"), "eval_interval": 3, "optimizer": "adamw_8bit", **TRAINING,
        "lora": {"rank": 32},
    },
    "kto": lambda get: {"policy": get("sft"), "data": get("feedback"), "eval_interval": 3, **TRAINING},
    "ppo": lambda get: {
        "policy": get("base"), "data": get("pairs"), "reward": get("reward"), "batch_size": 8, "total_episodes": 40,
        "kl_controller": "adaptive", "num_mini_batches": 2, "optimizer": "adamw_8bit", "lora": {"rank": 32}, **SAMPLING,
    },
    "rloo": lambda get: {"policy": get("sft"), "data": get("pairs"), **GROUPS},
    "grpo": lambda get: {"policy": get("sft"), "data": get("pairs"), **GROUPS},
    "best_of_n": lambda get: {
        "policy": get("sft"), "data": get("pairs"), "n": 3, "max_new_tokens": 24, "programs": {SCORER: 1.0}
    },
    "merge": lambda get: {"adapter": get("dpo"), "data": get("pairs")},
    "evaluate": lambda get: {"policy": get("sft"), "data": get("pairs"), "reward": get("reward"), "max_prompts": 16},
    "judge": lambda get: {
        "report": get("eval_sft"), "against": get("eval_base"), "policy": get("base"), "batch_size": 2
    },
}  # fmt: skip
KINDS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "all weights": ("dpo", lambda get: {"policy": get("base"), "data": get("pairs"), **TRAINING, "epochs": 1}),
    "DoRA": ("sft", lambda get: {
        "base": get("base"), "data": get("demonstrations"), **TRAINING, "epochs": 1, "lora": {"rank": 4, "dora": True},
    }),
    "4 bits": ("simpo", lambda get: {
        "policy": get("base4"), "data": get("pairs"), **TRAINING, "epochs": 1, "lora": {"rank": 4},
    }),
}  # fmt: skip
WITH_CHECKPOINTS = {"sft", "reward", "dpo", "simpo", "orpo", "kto", "ppo", "rloo", "grpo"}
COMMON = {"train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second"}
"""What every method logs under the same names, and against samples seen, so that charts lay them over each other."""


def test_every_registered_stage_has_its_case():
    assert set(CASES) == set(STAGES)


def work(job: Job, log: Path, dies_before_manifest: int, dies_after: str) -> None:
    """What `python -m tasks job.json` does, in a process of its own; may die amid its nth save, or after one."""
    as_a_trainer(log)
    real, saves = checkpoints.write_synced, []

    def write_synced(path: Path, text: str) -> None:
        saves.append(path)
        if len(saves) == dies_before_manifest:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, text)

    checkpoints.write_synced = write_synced
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        made = rename(path, target)
        if made.name == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    Path.rename = renamed  # type: ignore[method-assign]
    from tasks.__main__ import main

    os._exit(main([str(job.draft / "job.json")]))


def attempt(job: Job, *, killed_after: float | None = None, dies_before_manifest: int = 0, dies_after: str = "") -> int:
    """Its exit status: minus the signal's number if it was killed."""
    arguments = (job, job.draft / "log.txt", dies_before_manifest, dies_after)
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(killed_after)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture
def job_of(kitchen: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str, str], Job]:
    def make(case: str, name: str) -> Job:
        uses, fields_of = KINDS[case] if case in KINDS else (case, CASES[case])
        fields = fields_of(lambda label: request.getfixturevalue(label).handle)
        (draft := tmp_path / name).mkdir()
        stage = kitchen.stage(uses, **fields)
        job = Job.of(stage, uses=uses, key="k" * 8, seed=0, execution=EXECUTION, draft=draft)
        (draft / "job.json").write_text(job.model_dump_json())
        return job

    return make


@dataclass(frozen=True)
class Undisturbed:
    """A job that nobody disturbed, and how long it took."""

    draft: Path
    seconds: float


@pytest.fixture(scope="module")
def kept() -> dict[str, Undisturbed]:
    return {}


@pytest.fixture
def undisturbed(job_of: Callable[[str, str], Job], kept: dict[str, Undisturbed]) -> Callable[[str], Undisturbed]:
    """The case's, made once for all tests that ask for it; they only read it."""

    def get(case: str) -> Undisturbed:
        if case not in kept:
            job, started = job_of(case, "undisturbed"), time.monotonic()
            assert attempt(job) == 0, (job.draft / "log.txt").read_text()
            kept[case] = Undisturbed(job.draft, time.monotonic() - started)
        return kept[case]

    return get


@pytest.mark.parametrize("uses", STAGES)
def test_killed_again_and_again_it_ends_with_the_same_bytes_points_and_figures(uses, job_of, undisturbed):
    whole, disturbed = undisturbed(uses), job_of(uses, "disturbed")
    draw = random.Random(uses)
    if uses in WITH_CHECKPOINTS:
        statuses = [attempt(disturbed, dies_before_manifest=number) for number in (1, 3)]
        assert statuses == [-signal.SIGKILL] * 2, (disturbed.draft / "log.txt").read_text()
    ends: list[int] = []
    while len(ends) < 2 or -signal.SIGKILL not in ends:  # a busy machine may have slowed the undisturbed run alone
        assert len(ends) < 10
        ends.append(attempt(disturbed, killed_after=draw.uniform(0.1, 0.8) * 0.6 ** len(ends) * whole.seconds))
    begun, before = disturbed.stage().begun(disturbed.draft / "work"), (disturbed.draft / "log.txt").read_text()
    assert attempt(disturbed) == 0, (disturbed.draft / "log.txt").read_text()

    assert left_in(disturbed.draft) == left_in(whole.draft)
    said = (disturbed.draft / "log.txt").read_text()
    assert ("going on " in said) == (uses in WITH_CHECKPOINTS)
    assert begun == any(words in said[len(before) :] for words in ("going on ", "were sampled before", "given before"))


@pytest.fixture(scope="session")
def base4(kitchen: Any, base: Any) -> Any:
    return kitchen.make("quantize", base=base.handle)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weights_goes_on_to_the_same_bytes(kind, job_of, undisturbed):
    whole, disturbed = undisturbed(kind), job_of(kind, "disturbed")
    assert [attempt(disturbed, dies_before_manifest=number) for number in (1, 2)] == [-signal.SIGKILL] * 2
    assert attempt(disturbed) == 0, (disturbed.draft / "log.txt").read_text()
    assert left_in(disturbed.draft) == left_in(whole.draft)
    assert "going on " in (disturbed.draft / "log.txt").read_text()


@pytest.mark.parametrize("uses", sorted(WITH_CHECKPOINTS))
def test_killed_after_its_last_checkpoint_it_takes_no_step_more(uses, job_of, undisturbed):
    """That one stands amid an epoch; all that is left to do is to write the output."""
    whole, disturbed = undisturbed(uses), job_of(uses, "disturbed")
    points = [point for point in read_jsonl(whole.draft / "metrics.jsonl") if "train/loss" in point["metrics"]]
    assert all(set(point["metrics"]) >= COMMON for point in points)
    assert [point["step"] for point in points] == list(range(8, 8 * len(points) + 1, 8))  # 8 rows a step, or a rollout
    last = max(int(path.name.rsplit("-", 1)[1]) for path in (whole.draft / "work").glob("checkpoint-*"))
    assert attempt(disturbed, dies_after=f"checkpoint-{last}") == -signal.SIGKILL
    assert attempt(disturbed) == 0, (disturbed.draft / "log.txt").read_text()
    assert left_in(disturbed.draft) == left_in(whole.draft)


@pytest.mark.parametrize("uses", ["sft", "dpo", "kto", "grpo"])
def test_points_further_apart_than_checkpoints_are_the_same_too(uses, job_of):
    """What a point averages is in no checkpoint: one is only made where a point was written."""
    jobs = [job_of(uses, name) for name in ("undisturbed", "disturbed")]
    for job in jobs:
        job.execution = EXECUTION.model_copy(update={"log_interval": 2, "micro_batch": 8})
        (job.draft / "job.json").write_text(job.model_dump_json())
    assert attempt(jobs[0]) == 0
    assert attempt(jobs[1], dies_before_manifest=2) == -signal.SIGKILL
    assert attempt(jobs[1]) == 0
    assert left_in(jobs[1].draft) == left_in(jobs[0].draft)
    assert "going on from checkpoint-2" in (jobs[1].draft / "log.txt").read_text()


@pytest.mark.parametrize("uses", ["sft", "grpo", "ppo"])
def test_where_steps_take_long_the_clock_says_when_to_save(uses, job_of, undisturbed):
    """Killed amid a save that the steps alone would never have made."""
    whole, disturbed = undisturbed(uses), job_of(uses, "disturbed")
    disturbed.execution = EXECUTION.model_copy(update={"save_interval": 10_000, "save_minutes": 1e-9})
    (disturbed.draft / "job.json").write_text(disturbed.model_dump_json())
    assert attempt(disturbed, dies_before_manifest=3) == -signal.SIGKILL
    assert attempt(disturbed) == 0, (disturbed.draft / "log.txt").read_text()
    assert "going on " in (disturbed.draft / "log.txt").read_text()
    assert left_in(disturbed.draft) == left_in(whole.draft)
