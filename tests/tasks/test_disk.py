"""The room that a plan asks for, against what training really leaves: the output and three checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.context import Execution
from tasks.job import Job
from tasks.shape import ModelShape

SPARE = 64 << 20
"""What the plan adds for everything that is small."""
WHOLE = {"rank": 4, "modules_to_save": ["embed_tokens"]}
SHORT = {"max_steps": 2, "eval_rows": 0}
EXECUTION = Execution(threads=1, device="cpu", save_interval=1, keep_checkpoints=1)


def tensor_bytes(folder: Path) -> int:
    """Of all tensors in the files: weights, and an optimizer's moments."""
    weights = sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    moments = 0
    for file in folder.glob("optimizer.pt"):
        state = torch.load(file, weights_only=True)["state"]
        moments += sum(each.nbytes for one in state.values() for each in one.values() if each.dim())
    return weights + moments


@pytest.fixture
def ran(kitchen, tmp_path) -> Any:
    """A stage that has run, and its draft with the last checkpoint."""

    def run(uses: str, **fields: Any) -> tuple[Any, Path]:
        stage = kitchen.stage(uses, **fields, **SHORT)
        (draft := tmp_path / uses).mkdir()
        job = Job.of(stage, uses=uses, key="k" * 8, seed=0, execution=EXECUTION, draft=draft)
        stage.run(job.context(events=False))
        return stage, draft

    return run


def room_needed(draft: Path) -> int:
    (checkpoint,) = (draft / "work").glob("checkpoint-*")
    assert tensor_bytes(checkpoint) > tensor_bytes(draft / "out") > 0
    return tensor_bytes(draft / "out") + 3 * tensor_bytes(checkpoint)


@pytest.mark.parametrize("lora", [{"rank": 4}, WHOLE, None], ids=["matrices", "modules", "all weights"])
def test_there_is_room_for_what_training_leaves(base, demonstrations, ran, lora):
    stage, draft = ran("sft", base=base.handle, data=demonstrations.handle, lora=lora)
    assert room_needed(draft) <= stage.disk_bytes() - SPARE < 1.5 * room_needed(draft)


@pytest.mark.parametrize("uses", ["dpo", "sft", "reward"])
def test_there_is_room_too_where_an_adapter_with_whole_modules_goes_on(kitchen, base, demonstrations, pairs, ran, uses):
    tuned = kitchen.make("sft", base=base.handle, data=demonstrations.handle, lora=WHOLE, **SHORT).handle
    if uses == "reward":
        start: dict[str, Any] = {"base": base.handle, "lora": WHOLE}
    else:
        start = {"policy": tuned} if uses == "dpo" else {"base": base.handle, "adapter": tuned}
    stage, draft = ran(uses, data=(demonstrations if uses == "sft" else pairs).handle, **start)
    assert room_needed(draft) <= stage.disk_bytes() - SPARE < 2 * room_needed(draft)


def test_embeddings_that_are_the_head_count_twice_in_weights_and_once_in_moments(kitchen, base, demonstrations):
    stage = kitchen.stage("sft", base=base.handle, data=demonstrations.handle, lora=WHOLE)
    trained = stage.trained(ModelShape.of(base.handle))
    assert stage.disk_bytes() - SPARE == 8 * trained + 3 * (8 + 8) * trained
    eight = stage.model_copy(update={"optimizer": "adamw_8bit"})
    assert eight.disk_bytes() - SPARE == 8 * trained + 3 * (8 + 2) * trained
    plain = kitchen.stage("sft", base=base.handle, data=demonstrations.handle, lora={"rank": 4})
    trained = plain.trained(ModelShape.of(base.handle))
    assert plain.disk_bytes() - SPARE == 4 * trained + 3 * (4 + 8) * trained
