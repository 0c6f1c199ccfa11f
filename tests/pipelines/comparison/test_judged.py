"""What judges said, beside the figures of the policies that they were asked about."""

from __future__ import annotations

import json

import pytest

from flows.commands.comparison_text import full, markdown
from pipelines.comparison.comparison import Comparisons
from pipelines.comparison.page import page
from pipelines.comparison.pair_tables import verdicts

FIGURES = {
    "win_rate": 0.625, "win_rate_low": 0.5, "win_rate_high": 0.75, "ties": 0.25, "pairs": 18.0, "identical": 1.0,
    "nonsense": 1.0, "failed": 1.0, "position_bias": 0.55, "agreement_check": 0.75, "agreement_check_low": 0.5,
    "agreement_check_high": 0.9, "agreement_check_pairs": 12.0, "agreement_reward_pairs": 0.0,
}  # fmt: skip


@pytest.fixture
def reports(shelf):
    base = shelf.made("base", "checkpoint", seed=None)
    policies = {name: shelf.made("sft", "adapter", inputs={"base": base}, fields={"learning_rate": rate})
                for name, rate in (("sft", 0.1), ("dpo", 0.2), ("kto", 0.3))}  # fmt: skip
    first = shelf.report("base", base, [False] * 20)
    return [first, *(shelf.report(name, policy, [True, False] * 10) for name, policy in policies.items())]


def judge(shelf, report, against, *, says, policy=None, **fields):
    inputs = {"report": report.key, "against": against.key} | ({"policy": policy} if policy else {})
    metrics = {f"judge/{name}": value for name, value in FIGURES.items()}
    files = {"verdicts.json": json.dumps({"judge": says})}
    return shelf.made("judge", "verdicts", inputs=inputs, fields=fields, metrics=metrics, files=files)


def test_every_judge_of_two_compared_policies_has_a_row_and_no_other_has(shelf, reports):
    base, sft, dpo, kto = reports
    judge(shelf, kto, sft, says="model-b")
    judge(shelf, dpo, sft, says="model-a")
    judge(shelf, dpo, sft, says=base.policy, policy=base.policy)
    comparison = Comparisons.of([base, sft, dpo], shelf.store).each[0]
    headings, rows = verdicts(comparison)
    assert [row[:2] for row in rows] == [["dpo over sft", "base"], ["dpo over sft", "model-a"]] or [
        row[:2] for row in rows
    ] == [["dpo over sft", "model-a"], ["dpo over sft", "base"]]
    row = dict(zip(headings, rows[0], strict=True))
    assert row["win rate"] == "62.5% [50.0, 75.0]"
    assert (row["pairs"], row["lost"], row["ties"]) == ("18", "2", "25.0%")
    assert (row["with checks"], row["agrees with reward"], row["first"]) == ("75.0% of 12", "–", "55.0%")


def test_a_judge_that_is_not_among_the_policies_goes_by_its_key(shelf, reports):
    _, sft, dpo, kto = reports
    judge(shelf, dpo, sft, says=kto.policy, policy=kto.policy)
    rows = verdicts(Comparisons.of([sft, dpo], shelf.store).each[0])[1]
    assert rows[0][1] == kto.policy[:12]


def test_it_is_in_every_form_of_the_comparison(shelf, reports):
    _, sft, dpo, _ = reports
    without = Comparisons.of([sft, dpo], shelf.store)
    assert "judge" not in full(without) and without.as_dict()["verdicts"] == []
    key = judge(shelf, dpo, sft, says="<b>model</b>")
    comparisons = Comparisons.of([sft, dpo], shelf.store)
    assert "dpo over sft" in full(comparisons) and "| dpo over sft |" in markdown(comparisons)
    assert "<b>model" not in page(comparisons, "run") and "&lt;b&gt;model" in page(comparisons, "run")
    (said,) = comparisons.as_dict()["verdicts"]
    assert (said["name"], said["against"], said["judge"], said["key"]) == ("dpo", "sft", "<b>model</b>", key)
    assert said["metrics"]["judge/win_rate"] == 0.625
