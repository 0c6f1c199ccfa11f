"""Rows that were made for one vocabulary teach nothing but noise to a model with another."""

from __future__ import annotations

import pytest

from artifacts.errors import ModelError


@pytest.fixture(scope="module")
def other(kitchen):
    """The same model, with a token more."""
    return kitchen.make("base", source="builtin:tiny-llama", add_tokens=["<|more|>"]).handle


def test_rows_for_another_tokenizer_are_refused_before_anything_trains(kitchen, other, demonstrations):
    with pytest.raises(ModelError, match="data: its base has another tokenizer than base has; make both with the same"):
        kitchen.make("sft", base=other, data=demonstrations.handle)


def test_so_is_a_reward_model_for_another(kitchen, other, pairs, reward):
    few = {"source": "preferences.jsonl", "limit": 4, "test_size": 0.5}
    data = kitchen.make("data", base=other, form="preferences", **few).handle
    with pytest.raises(ModelError, match="reward: its base has another tokenizer than policy has"):
        kitchen.make("evaluate", policy=other, data=data, reward=reward.handle)


def test_another_base_with_the_same_tokenizer_is_good(kitchen, demonstrations):
    base = kitchen.make("base", source="builtin:tiny-llama", dtype="bfloat16").handle
    assert kitchen.make("sft", base=base, data=demonstrations.handle, max_steps=1, eval_rows=0).metrics
