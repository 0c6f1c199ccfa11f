"""The best of n completions, as demonstrations, and training on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from artifacts.errors import DataError
from tasks.best_of_n import BestOfN
from tasks.rl.sampler import Sampler, row_draws
from tasks.stage import derive_seed
from tasks.training.models import base_tokenizer, load_model
from tasks.training.rows import load_rows
from tests.tasks.rl.scorers import letters

SCORER = f"{Path(__file__).parent / 'scorers.py'}:letters"
FIELDS = {"programs": {SCORER: 1.0}, "max_new_tokens": 24, "n": 4}


@pytest.fixture(scope="module")
def writes_and_ends(kitchen, base, demonstrations):
    """A policy that has learned to end."""
    return kitchen.make(
        "sft", base=base.handle, data=demonstrations.handle, learning_rate=1e-2, epochs=6, eval_rows=0,
        lora={"rank": 8, "alpha": 16},
    )  # fmt: skip


@pytest.fixture(scope="module")
def best(kitchen, writes_and_ends, pairs):
    return kitchen.make("best_of_n", policy=writes_and_ends.handle, data=pairs.handle, **FIELDS)


def test_what_is_kept_is_the_best_of_the_n_that_a_seed_draws(best, writes_and_ends):
    tokenizer, model = base_tokenizer(writes_and_ends.handle), load_model(writes_and_ends.handle, "cpu")
    sampler = Sampler(model, stop_ids=[tokenizer.eos_token_id], pad=0, temperature=1.0, max_new_tokens=24, batch_size=4)
    seed = derive_seed(0, "best_of_n")
    rows = load_rows(best.handle, "train")
    assert rows
    for row in rows[:6]:
        sampled = sampler([row["prompt_ids"]] * 4, row_draws(seed, f"prompt {row['row']}", range(4), 24))
        texts = [tokenizer.decode(one.ids, skip_special_tokens=True).strip() for one in sampled]
        scores = letters([row["prompt"]] * 4, texts)
        wanted = max(score for score, one in zip(scores, sampled, strict=True) if not one.truncated)
        assert letters([row["prompt"]], [row["completion"]]) == [wanted]
        assert row["completion_ids"][-1] == tokenizer.eos_token_id


def test_its_report_counts_every_prompt_and_its_figures_say_what_was_gained(best, pairs):
    report = json.loads((best.handle.path / "report.json").read_text())
    prompts = len({tuple(row["prompt_ids"]) for row in load_rows(pairs.handle, "train")})
    assert report["rows_in"] == prompts == report["train"]["rows"] + sum(report["left_out"].values())
    assert best.metrics["score/gain"] > 0
    assert best.metrics["objective/kl_bound"] == pytest.approx(math.log(4) - 0.75)
    held_out = load_rows(best.handle, "test")
    assert [row["completion"] for row in held_out] == [row["chosen"] for row in load_rows(pairs.handle, "test")]


def test_a_prompts_completions_do_not_hang_on_what_else_is_sampled(kitchen, writes_and_ends, pairs, best):
    few = kitchen.make("best_of_n", policy=writes_and_ends.handle, data=pairs.handle, max_prompts=5, **FIELDS)
    whole = {row["row"]: row["completion"] for row in load_rows(best.handle, "train")}
    alone = {row["row"]: row["completion"] for row in load_rows(few.handle, "train")}
    assert alone and all(whole[row] == completion for row, completion in alone.items())


def test_sft_on_it_goes_on_with_the_adapter_or_starts_from_the_base(kitchen, base, best, writes_and_ends):
    on = kitchen.make("sft", base=base.handle, data=best.handle, adapter=writes_and_ends.handle, eval_rows=0)
    fresh = kitchen.make("sft", base=base.handle, data=best.handle, eval_rows=0)
    first = [
        next(p["metrics"]["train/loss"] for p in made.points() if "train/loss" in p["metrics"]) for made in (on, fresh)
    ]
    assert first[0] < first[1], "the adapter's own samples are likely to it already"
    shapes = [json.loads((made.handle.path / "adapter_config.json").read_text())["r"] for made in (on, fresh)]
    assert shapes == [8, 16]
    with pytest.raises(ValidationError, match="lora must be left out when `adapter` gives"):
        kitchen.stage("sft", base=base.handle, data=best.handle, adapter=writes_and_ends.handle, lora={"rank": 4})


def test_where_no_completion_ends_it_says_so(kitchen, base, pairs):
    with pytest.raises(DataError, match="none has a completion that ends within max_new_tokens 1"):
        kitchen.make("best_of_n", policy=base.handle, data=pairs.handle, **{**FIELDS, "max_new_tokens": 1, "n": 2})


def test_without_anything_to_score_by_it_is_refused(kitchen, base, pairs):
    with pytest.raises(ValidationError, match="reward is missing: name a reward model's stage"):
        kitchen.stage("best_of_n", policy=base.handle, data=pairs.handle)


def test_the_bound_by_hand():
    """Two completions: the better of two is from the policy at most ln 2 - 1/2 = 0.193 nats."""
    assert BestOfN.model_construct(n=2).kl_bound() == pytest.approx(0.1931472)
    assert torch.isclose(torch.tensor(BestOfN.model_construct(n=64).kl_bound()), torch.tensor(3.1745), atol=1e-4)
