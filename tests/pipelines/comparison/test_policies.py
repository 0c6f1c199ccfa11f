"""Figures that follow from the completions alone."""

from __future__ import annotations

import pytest

from pipelines.comparison.policies import Compared, repetition


def ids(*completions: list[int]) -> list[dict]:
    return [{"completion_ids": one} for one in completions]


def test_repetition_by_hand():
    # 1 2 3 | 2 3 1 | 3 1 2 | 1 2 3: four 3-grams, three distinct. None of the other's two comes twice.
    assert repetition(ids([1, 2, 3, 1, 2, 3])) == pytest.approx(1 / 4)
    assert repetition(ids([1, 2, 3, 1, 2, 3], [1, 2, 3, 4])) == pytest.approx(1 / 8)
    assert repetition(ids([7] * 12)) == pytest.approx(9 / 10)


def test_completions_without_a_3_gram_repeat_nothing_and_count_for_nothing():
    assert repetition(ids([1, 1], [])) == 0.0
    assert repetition(ids([1, 1], [7] * 12)) == pytest.approx(9 / 10)


def test_rounding_never_leaves_a_figure_outside_its_interval():
    """Wilson's low end of no success in so many prompts may come out as 1e-17; no picture takes an error below 0."""
    found = Compared(
        "base", {"eval/check_rate": 0.0, "eval/check_rate_low": 1e-17, "eval/check_rate_high": 0.1}, {}, []
    )
    assert found.interval("eval/check_rate") == (0.0, 0.0, 0.1)
    assert Compared("base", {"eval/loss": 2.0}, {}, []).interval("eval/loss") == (2.0, 2.0, 2.0)


def policy(name: str, length: float, **more: str) -> Compared:
    return Compared(name, {"eval/length_mean": length}, {}, [], key=f"report {name}", policy=name, **more)


def test_lengths_are_held_against_what_it_was_compared_with_or_else_its_reference():
    sft, base = policy("sft", 10.0), policy("base", 40.0)
    over = policy("dpo", 15.0, against="report sft", reference="base")
    assert over.beside([sft, base]).metrics["eval/length_ratio"] == 1.5
    distant = policy("dpo", 20.0, reference="base")
    assert distant.beside([sft, base]).metrics["eval/length_ratio"] == 0.5
    assert "eval/length_ratio" not in policy("dpo", 20.0, against="a report elsewhere").beside([sft, base]).metrics
