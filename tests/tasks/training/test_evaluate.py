from __future__ import annotations

import json

import pytest
import torch

from artifacts.errors import DataError
from tasks.checks import passes
from tasks.evaluate import read_completions
from tasks.training.models import load_model, load_tokenizer
from tasks.training.rows import load_rows
from tasks.training.sampling import merged, until_eos


@pytest.fixture(scope="session")
def reports(kitchen, sft, dpo, reward, pairs):
    common = {"data": pairs.handle, "reward": reward.handle, "max_prompts": 16, "max_new_tokens": 12}
    before = kitchen.make("evaluate", policy=sft.handle, **common)
    after = kitchen.make("evaluate", policy=dpo.handle, reference=sft.handle, against=before.handle, **common)
    return before, after


def test_completions_are_greedy_and_judged_by_their_own_check(reports, sft, pairs):
    before, _ = reports
    model, tokenizer = load_model(sft.handle, "cpu"), load_tokenizer(sft.handle.base)
    rows = {row["row"]: row for row in load_rows(pairs.handle, "test")}
    for result in read_completions(before.handle.path)[:3]:
        ids = list(rows[result["row"]]["prompt_ids"])
        made = []
        with torch.no_grad():
            while len(made) < 12 and (not made or made[-1] != tokenizer.eos_token_id):
                made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
        assert result["completion_ids"] == made
        assert result["passed"] == passes(rows[result["row"]]["check"], result["completion"])


def test_figures_follow_from_the_completions(reports):
    before, after = reports
    results = read_completions(before.handle.path)
    assert before.metrics["eval/check_rate"] == pytest.approx(sum(r["passed"] for r in results) / len(results))
    assert before.metrics["eval/score_mean"] == pytest.approx(sum(r["score"] for r in results) / len(results))
    theirs = read_completions(after.handle.path)
    wins = [(a["passed"] - b["passed"] + 1) / 2 for a, b in zip(theirs, results, strict=True)]
    assert after.metrics["eval/win_rate"] == pytest.approx(sum(wins) / len(wins))
    assert after.metrics["eval/win_rate_low"] <= after.metrics["eval/win_rate"] <= after.metrics["eval/win_rate_high"]


def test_a_policy_is_at_kl_0_from_itself(kitchen, sft, pairs):
    made = kitchen.make(
        "evaluate", policy=sft.handle, reference=sft.handle, data=pairs.handle, max_prompts=4, max_new_tokens=6
    )
    assert made.metrics["eval/kl_to_reference"] == pytest.approx(0, abs=1e-6)


def test_perplexity_and_preference_accuracy_are_those_of_the_held_out_pairs(reports, sft, pairs):
    before, _ = reports
    rows = load_rows(pairs.handle, "test")[:16]
    model = load_model(sft.handle, "cpu")

    def mean_logp(row, side):
        ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        return logps[-len(row[f"{side}_ids"]) :].mean().item()

    better = [mean_logp(row, "chosen") > mean_logp(row, "rejected") for row in rows]
    assert before.metrics["eval/preference_accuracy"] == pytest.approx(sum(better) / len(better))
    tokens = [len(row["chosen_ids"]) for row in rows]
    loss = -sum(mean_logp(row, "chosen") * n for row, n in zip(rows, tokens, strict=True)) / sum(tokens)
    assert before.metrics["eval/loss"] == pytest.approx(loss, abs=1e-4)


def test_sampling_with_the_adapter_merged_leaves_every_bit_of_the_model_as_it_was(dpo):
    model = load_model(dpo.handle, "cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        unmerged = model(ids).logits
        with merged(model):
            assert torch.allclose(model(ids).logits, unmerged, atol=1e-4)
        assert torch.equal(model(ids).logits, unmerged)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_completion_ends_with_its_first_eos():
    assert until_eos([5, 2, 7, 2], eos=2) == [5, 2]
    assert until_eos([5, 6], eos=2) == [5, 6]


def test_the_report_names_its_judge_and_kinds(reports):
    report = json.loads((reports[1].handle.path / "report.json").read_text())
    assert report["judge"] == "check" and report["against"] == reports[0].handle.key
    assert sum(kind["rows"] for kind in report["by_kind"].values()) == 16


def test_a_prompt_of_several_rows_is_one_prompt(kitchen, sft, feedback):
    rows = load_rows(feedback.handle, "test")[:8]
    assert len({row["prompt"] for row in rows}) == 4
    made = kitchen.make("evaluate", policy=sft.handle, data=feedback.handle, max_prompts=8, max_new_tokens=4)
    found = read_completions(made.handle.path)
    assert made.metrics["eval/prompts"] == len(found) == len({one["prompt"] for one in found}) == 4


def test_wins_are_counted_over_the_same_prompts_only(kitchen, reports, sft, demonstrations):
    assert {row["row"] for row in load_rows(demonstrations.handle, "test")} & set(range(16)), (
        "as numbers they are shared"
    )
    with pytest.raises(DataError, match="against: that evaluation has none of these prompts; give both the same data"):
        kitchen.make(
            "evaluate", policy=sft.handle, data=demonstrations.handle, against=reports[0].handle, max_new_tokens=2
        )


def test_scores_of_two_reward_models_are_not_compared(kitchen, tmp_path, base, sft, reward, pairs):
    source = tmp_path / "unchecked.jsonl"
    row = '{{"prompt": "Say {0}.", "chosen": "{0}!", "rejected": "No."}}\n'
    source.write_text("".join(row.format(word) for word in ("one", "two", "three", "four", "five", "six")))
    data = kitchen.make("data", base=base.handle, form="preferences", source=str(source), test_size=0.5).handle
    other = kitchen.make(
        "reward", base=base.handle, data=pairs.handle, learning_rate=2e-3, lora={"rank": 2}, max_steps=1, eval_rows=0
    )
    common = {"data": data, "max_new_tokens": 2}
    first = kitchen.make("evaluate", policy=base.handle, reward=reward.handle, **common).handle
    alike = kitchen.make("evaluate", policy=sft.handle, reward=reward.handle, against=first, **common)
    unlike = kitchen.make("evaluate", policy=sft.handle, reward=other.handle, against=first, **common)
    assert "eval/win_rate" in alike.metrics and "eval/win_rate" not in unlike.metrics
