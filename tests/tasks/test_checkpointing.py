"""Checkpointing computes again what it did not keep: less memory and the same bytes, so it is no part of a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tasks.context import Execution
from tasks.rl import update
from tasks.rl.recomputing import recomputing
from tests.tasks.rl.runs import World, run

ONE = Execution(threads=1, device="cpu")
AGAIN = ONE.model_copy(update={"checkpointing": True})


def tensors(made: Any) -> bytes:
    return (Path(made.handle.path) / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("uses", ["sft", "reward", "dpo", "kto", "orpo"])
def test_it_changes_no_byte(
    uses: str, kitchen: Any, base: Any, demonstrations: Any, pairs: Any, feedback: Any, sft: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked, enable = [], PreTrainedModel._set_gradient_checkpointing

    def counted(model: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(model)
        enable(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_set_gradient_checkpointing", counted)
    data = {"sft": demonstrations, "kto": feedback}.get(uses, pairs).handle
    start = {"base": base.handle} if uses in ("sft", "reward") else {"policy": sft.handle}
    fields = {"data": data, "max_steps": 2, "eval_rows": 0, "batch_size": 4, **start}
    plain, again = (kitchen.make(uses, execution, **fields) for execution in (ONE, AGAIN))
    assert asked
    assert tensors(plain) == tensors(again)


def test_it_changes_no_byte_of_ppo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.build(tmp_path / "world", "llama", 2)
    entered = []

    def counted(model: Any) -> Any:
        entered.append(model)
        return recomputing(model)

    monkeypatch.setattr(update, "recomputing", counted)
    plain, again = (run(tmp_path / name, execution=how, **world.fields()) for name, how in
                    (("plain", ONE), ("again", AGAIN)))  # fmt: skip
    assert len(entered) == 2  # once a rollout, and only in the run that was asked to
    assert tensors(plain) == tensors(again)
