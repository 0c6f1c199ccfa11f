"""A judge in memory: what it reads off a model, and that its verdicts do not hang on which report comes first."""

from __future__ import annotations

import pytest
import torch

from artifacts.errors import ModelError
from artifacts.jsonl import read_jsonl
from tasks.judging.pairs import QUESTION, paired
from tasks.rendering import Renderer
from tasks.rows import Row
from tasks.training.models import load_model
from tests.tasks.judging.conftest import write_report


@pytest.fixture(scope="module")
def judged(kitchen, base, eval_sft, eval_base):
    """SFT over its base, and the base over it."""
    return (
        kitchen.make("judge", report=eval_sft.handle, against=eval_base.handle, policy=base.handle),
        kitchen.make("judge", report=eval_base.handle, against=eval_sft.handle, policy=base.handle),
    )


def test_swapping_the_reports_mirrors_every_verdict_and_the_win_rate(judged):
    mine, theirs = (read_jsonl(one.handle.path / "verdicts.jsonl") for one in judged)
    mirrored = {"win": "loss", "loss": "win", "tie": "tie"}
    assert [mirrored[line["verdict"]] for line in mine] == [line["verdict"] for line in theirs]
    one, other = (made.metrics for made in judged)
    assert one["judge/win_rate"] == pytest.approx(1 - other["judge/win_rate"])
    assert one["judge/win_rate_low"] == pytest.approx(1 - other["judge/win_rate_high"])
    for name in ("position_bias", "ties", "pairs", "identical"):
        assert one[f"judge/{name}"] == other[f"judge/{name}"]


def test_each_answer_is_the_letter_that_the_model_finds_likelier_next(judged, base, eval_sft, eval_base):
    renderer, model = Renderer(base.handle, "chat"), load_model(base.handle, "cpu")
    letters = [renderer.tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
    pairs, apart = paired(eval_sft.handle.path, eval_base.handle.path)
    assert apart == 0
    seen = 0
    for pair, line in zip(pairs, read_jsonl(judged[0].handle.path / "verdicts.jsonl"), strict=True):
        if pair.identical:
            assert line["answers"] == [None, None]
            continue
        for question, said in zip(pair.questions(QUESTION), line["answers"], strict=True):
            ids = renderer.prompt_ids(Row(row=0, instruction=question.text))
            with torch.no_grad():
                first, second = model(torch.tensor([ids])).logits[0, -1, letters].tolist()
            assert said == ("A" if first > second else "B")
            seen += 1
    assert seen >= 20


def test_a_template_and_a_policy_with_an_adapter_do_as_well(kitchen, sft, eval_sft, eval_base):
    made = kitchen.make(
        "judge", report=eval_sft.handle, against=eval_base.handle, policy=sft.handle, template="alpaca", max_prompts=4
    )
    assert made.metrics["judge/pairs"] == 4


def test_what_is_longer_than_its_context_is_counted_as_failed(judging, tiny_llama, tmp_path):
    mine = write_report(tmp_path / "long", ["a", "b" * 2000, "c"])
    theirs = write_report(tmp_path / "short", ["d", "e", "f"])
    stage = judging(report=mine, against=theirs, policy=tiny_llama, max_lost=0.4)
    assert stage.run()["judge/failed"] == 1
    assert stage.verdicts()[1] == "failed"


def test_a_base_without_a_chat_template_says_what_to_set(judging, tiny_gpt2):
    stage = judging(policy=tiny_gpt2)
    with pytest.raises(ModelError, match="set `template: alpaca`"):
        stage.run()
    stage.fields["template"] = "alpaca"
    assert stage.run()["judge/pairs"] == 10
