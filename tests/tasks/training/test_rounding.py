"""All weights trained on a base in half precision: what rounding takes is counted, said, and refused if it is most."""

from __future__ import annotations

import pytest
import torch

from artifacts.errors import ModelError, StageError
from tasks.training.models import load_checkpoint
from tasks.training.rounding import lost_share


def test_the_share_is_that_of_the_squares_that_rounding_takes():
    """bfloat16 has 8 bits: between 1 and 2 its steps are 1/128. Of a move by (1/256, 3/128) it takes (1/256, 0)."""
    before = {"a": torch.tensor([1.0, 1.0], dtype=torch.bfloat16)}
    tuned = {"a": torch.tensor([1 + 1 / 256, 1 + 3 / 128])}
    assert lost_share(tuned, before) == pytest.approx((1 / 256) ** 2 / ((1 / 256) ** 2 + (3 / 128) ** 2))
    assert lost_share({"a": torch.tensor([1 + 1 / 512, 1.0])}, before) == 1
    assert lost_share({"a": torch.tensor([1.0, 1.0])}, before) == 0
    assert lost_share(tuned, {"a": torch.ones(2)}) == 0


def test_the_share_is_the_same_a_few_elements_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    before = {
        "a": torch.randn(7, 5, generator=generator).bfloat16(),
        "b": torch.randn(3, generator=generator).bfloat16(),
    }
    tuned = {name: old + 1e-3 * torch.randn(old.shape, generator=generator) for name, old in before.items()}
    at_once = lost_share(tuned, before)
    monkeypatch.setattr("tasks.training.rounding.AT_A_TIME", 4)
    assert lost_share(tuned, before) == pytest.approx(at_once, rel=1e-12)
    assert 0 < at_once < 1


@pytest.fixture(scope="module")
def coarse(kitchen):
    return kitchen.make("base", source="builtin:tiny-llama", dtype="bfloat16")


@pytest.fixture(scope="module")
def rows(kitchen, coarse):
    return kitchen.make("data", base=coarse.handle, form="demonstrations", source="instructions.jsonl", limit=32)


def test_steps_that_rounding_undoes_are_no_result(kitchen, coarse, rows):
    """At this rate almost every weight would be the base's again, though the figures spoke of float32."""
    with pytest.raises(StageError, match=r"rounding to the base's dtype loses \d+% of the tuning; .*float32"):
        kitchen.make(
            "sft", base=coarse.handle, data=rows.handle, lora=None, learning_rate=1e-6, max_steps=2, eval_rows=0
        )


def test_steps_that_stay_are_a_model_in_the_bases_dtype(kitchen, coarse, rows):
    made = kitchen.make(
        "sft", base=coarse.handle, data=rows.handle, lora=None, learning_rate=1e-2, max_steps=2, eval_rows=0
    )
    old, new = (load_checkpoint(one.handle, "cpu").state_dict() for one in (coarse, made))
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    assert not any(torch.equal(old[name], new[name]) for name in old)


def test_an_adopted_model_finer_than_its_base_is_not_rounded_back_to_it(kitchen, coarse, tmp_path):
    model = load_checkpoint(coarse.handle, "cpu", float32=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-4)
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelError, match="source: rounding to the base's dtype loses 100% of the tuning"):
        kitchen.make("adopt", base=coarse.handle, source=str(tmp_path / "theirs"), complete=True)
