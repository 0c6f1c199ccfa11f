"""A tiny chain, made once, in this process: what the tests of training look at."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artifacts.fingerprint import digest
from artifacts.kinds import Artifact
from artifacts.store import Store
from tasks.context import Context, Execution
from tasks.job import Job
from tasks.registry import stage_class
from tasks.stage import Stage

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(__file__).parents[2] / "pipelines" / "quickstart_data"


@dataclass
class Made:
    """A stage that has run."""

    stage: Stage
    handle: Any
    metrics: dict[str, float]
    folder: Path

    def points(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


class Kitchen:
    """Runs stages in a store of its own, with the files that the real thing would leave."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home)

    def stage(self, uses: str, **fields: Any) -> Stage:
        return stage_class(uses).model_validate(fields).locate([DATA])

    def make(self, uses: str, execution: Execution | None = None, **fields: Any) -> Made:
        stage = self.stage(uses, **fields)
        inputs = {name: artifact.key for name, artifact in stage.bound().items()}
        content = stage.content(self.store.digests)
        payload = {"uses": uses, "fields": stage.identity(), "inputs": inputs, "content": content}
        key = digest({**payload, "execution": (execution or Execution()).model_dump()})
        folder = self.store.folder(uses, key)
        if self.store.damage(uses, key) is not None:
            draft = self.store.draft(uses, key)
            job = Job.of(stage, uses=uses, key=key, seed=0, execution=execution or Execution(threads=2), draft=draft)
            context: Context = job.context(events=False)
            metrics = job.run(context)
            self.store.commit(
                uses=uses, key=key, kind=stage.output(key, folder).kind, payload=payload, fields=stage.settings(),
                metrics=metrics, seconds=0.0, source_digest=stage.source_digest(),
            )  # fmt: skip
        handle: Artifact = stage.output(key, folder / "out")
        manifest = self.store.get(uses, key)
        assert manifest is not None
        return Made(stage, handle, manifest.metrics, folder)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of this size gain nothing from a second one, and lose much where the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    return Kitchen(tmp_path_factory.mktemp("kitchen"))


@pytest.fixture(scope="session")
def base(kitchen: Kitchen) -> Made:
    return kitchen.make("base", source="builtin:tiny-llama")


@pytest.fixture(scope="session")
def demonstrations(kitchen: Kitchen, base: Made) -> Made:
    return kitchen.make("data", base=base.handle, form="demonstrations", source="instructions.jsonl", limit=32)


@pytest.fixture(scope="session")
def pairs(kitchen: Kitchen, base: Made) -> Made:
    return kitchen.make(
        "data", base=base.handle, form="preferences", source="preferences.jsonl",
        test_source="validation.jsonl", limit=32,
    )  # fmt: skip


@pytest.fixture(scope="session")
def feedback(kitchen: Kitchen, base: Made) -> Made:
    return kitchen.make(
        "data", base=base.handle, form="feedback", source="preferences.jsonl", split_pairs=True,
        test_source="validation.jsonl", limit=32,
    )  # fmt: skip


@pytest.fixture(scope="session")
def sft(kitchen: Kitchen, base: Made, demonstrations: Made) -> Made:
    return kitchen.make(
        "sft", base=base.handle, data=demonstrations.handle, learning_rate=3e-3, lora={"rank": 4, "alpha": 8}
    )


@pytest.fixture(scope="session")
def reward(kitchen: Kitchen, base: Made, pairs: Made) -> Made:
    return kitchen.make(
        "reward", base=base.handle, data=pairs.handle, learning_rate=2e-3, lora={"rank": 4, "alpha": 8}, eval_rows=8
    )


@pytest.fixture(scope="session")
def dpo(kitchen: Kitchen, sft: Made, pairs: Made) -> Made:
    return kitchen.make("dpo", policy=sft.handle, data=pairs.handle, learning_rate=2e-3, beta=0.3, eval_rows=8)


def _evaluated(kitchen: Kitchen, policy: Made, reward: Made, pairs: Made) -> Made:
    return kitchen.make(
        "evaluate", policy=policy.handle, reward=reward.handle, data=pairs.handle, max_prompts=12, max_new_tokens=12,
        temperature=1.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def eval_base(kitchen: Kitchen, base: Made, reward: Made, pairs: Made) -> Made:
    return _evaluated(kitchen, base, reward, pairs)


@pytest.fixture(scope="session")
def eval_sft(kitchen: Kitchen, sft: Made, reward: Made, pairs: Made) -> Made:
    return _evaluated(kitchen, sft, reward, pairs)


@pytest.fixture(scope="session")
def merge(kitchen: Kitchen, dpo: Made, pairs: Made) -> Made:
    return kitchen.make("merge", adapter=dpo.handle, data=pairs.handle)
