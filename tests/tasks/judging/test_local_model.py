"""A judge in memory: what it reads off a model, and that its verdicts do not hang on which report comes first."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from artifacts.errors import ModelError
from artifacts.jsonl import read_jsonl
from artifacts.kinds import Checkpoint
from tasks.judging.pairs import QUESTION, paired
from tasks.rendering import Renderer
from tasks.rows import Row
from tasks.training.models import load_model
from tests.tasks.judging.conftest import write_report


@pytest.fixture(scope="module")
def questions(base, eval_sft, eval_base):
    """Both of each pair, as ids."""
    renderer = Renderer(base.handle, "chat")
    pairs, apart = paired(eval_sft.handle.path, eval_base.handle.path)
    assert apart == 0 and not any(pair.identical for pair in pairs)
    return [
        [renderer.prompt_ids(Row(row=0, instruction=question.text)) for question in pair.questions(QUESTION)]
        for pair in pairs
    ]


@pytest.fixture(scope="module")
def judge(base, questions, tmp_path_factory):
    """A model that decides: B's weights differ from A's in a way in which only the order of two completions counts."""
    model, tokenizer = load_model(base.handle, "cpu"), Renderer(base.handle, "chat").tokenizer
    first, second = (tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    with torch.no_grad():
        states = torch.stack(
            [model.model(torch.tensor([ids])).last_hidden_state[0, -1] for both in questions for ids in both]
        )
    straight, swapped = states[0::2], states[1::2]
    common = torch.linalg.qr((straight + swapped).T).Q  # (64, 12)
    apart = straight - swapped
    way = torch.linalg.svd(apart - apart @ common @ common.T).Vh[0]
    weight = model.get_output_embeddings().weight.detach().clone()
    weight[second] = weight[first] + way
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(weight)
    folder = tmp_path_factory.mktemp("judge")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint(key="judge", path=folder)


@pytest.fixture(scope="module")
def judged(kitchen, judge, eval_sft, eval_base):
    """SFT over its base, and the base over it."""
    return (
        kitchen.make("judge", report=eval_sft.handle, against=eval_base.handle, policy=judge),
        kitchen.make("judge", report=eval_base.handle, against=eval_sft.handle, policy=judge),
    )


def test_swapping_the_reports_mirrors_every_verdict_and_the_win_rate(judged):
    mine, theirs = ([line["verdict"] for line in read_jsonl(one.handle.path / "verdicts.jsonl")] for one in judged)
    counts = Counter(mine)
    assert counts["win"] != counts["loss"] and counts["tie"] == 0, "else there is little to mirror"
    mirrored = {"win": "loss", "loss": "win", "tie": "tie"}
    assert [mirrored[verdict] for verdict in mine] == theirs
    one, other = (made.metrics for made in judged)
    assert one["judge/win_rate"] == (counts["win"] + counts["tie"] / 2) / 12
    assert one["judge/win_rate"] == pytest.approx(1 - other["judge/win_rate"])
    assert one["judge/win_rate_low"] == pytest.approx(1 - other["judge/win_rate_high"])
    for name in ("position_bias", "ties", "pairs", "identical", "agreement_reward", "agreement_reward_pairs"):
        assert one[f"judge/{name}"] == other[f"judge/{name}"]


def test_each_answer_is_the_letter_that_the_model_finds_likelier_next(judged, judge, questions):
    model = load_model(judge, "cpu")
    letters = [Renderer(judge, "chat").tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
    lines = read_jsonl(judged[0].handle.path / "verdicts.jsonl")
    for both, line in zip(questions, lines, strict=True):
        for ids, said in zip(both, line["answers"], strict=True):
            with torch.no_grad():
                first, second = model(torch.tensor([ids])).logits[0, -1, letters].tolist()
            assert said == ("A" if first > second else "B")
    assert {said for line in lines for said in line["answers"]} == {"A", "B"}


def test_a_policy_with_an_adapter_and_another_template_do_as_well(kitchen, sft, eval_sft, eval_base):
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
