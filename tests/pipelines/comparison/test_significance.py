"""The tests of differences, against numbers worked by hand and against what they promise."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipelines.comparison import significance
from pipelines.comparison.significance import (
    bootstrap_intervals,
    holm,
    permutation_p,
    sign_flip_p,
    smallest_difference,
)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        # Sum 9 of at most 11. As far out: no sign turned (11), or one of the two 1s (9): 3 of 32 patterns, twice.
        ((1, 2, 3, 4, -1), 6 / 32),
        # All five up: one pattern of 32, and its mirror image.
        ((0.5, 0.7, 0.1, 0.2, 0.3), 2 / 32),
        # Sum 0: every pattern is at least as far out.
        ((1.5, -1.5, 2.0, -2.0), 1.0),
        # McNemar's exact test of 8 for and 2 against: 2 (1 + 10 + 45) / 1024. Prompts alike on both sides say nothing.
        ((1,) * 8 + (-1,) * 2 + (0,) * 30, 112 / 1024),
        ((0, 0, 0), 1.0),
        ((2.0,), 1.0),
    ],
)
def test_the_sign_flip_test_by_hand(values, wanted):
    assert sign_flip_p(column(*values), seed=0) == [pytest.approx(wanted)]


def test_random_patterns_come_near_what_every_pattern_gives(monkeypatch):
    draw = np.random.default_rng(3)
    differences = draw.normal(0.4, 1.0, size=(12, 4))
    exact = sign_flip_p(differences, 0)
    monkeypatch.setattr(significance, "ENUMERATED", 0)
    assert sign_flip_p(differences, 0) == pytest.approx(exact, abs=0.02)
    assert sign_flip_p(differences, 0) != exact


def test_no_difference_is_found_about_as_often_as_the_level_says():
    draw = np.random.default_rng(0)
    found = [p < 0.05 for p in sign_flip_p(draw.normal(0, 1, size=(40, 150)), seed=1)]
    assert 0.01 < sum(found) / len(found) < 0.1
    assert min(sign_flip_p(np.ones((100, 1)) * np.arange(1, 101)[:, None], 0)) == 1 / 10_000


def test_holms_adjustment_by_hand():
    # Ordered .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and none below the one before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_the_smallest_difference_that_so_many_prompts_show():
    # 2.8016 standard errors: with a spread of 0.5 over 64 prompts one is 1/16.
    assert smallest_difference(0.5, 64) == pytest.approx(2.801585 / 16)
    # For the first of five pairs z is that of 1%: 2.5758 + 0.8416.
    assert smallest_difference(0.5, 64, tests=5) == pytest.approx(3.417450 / 16)
    assert smallest_difference(0.5, 256) == pytest.approx(smallest_difference(0.5, 64) / 2)


def test_a_difference_of_that_size_is_found_four_times_in_five():
    draw = np.random.default_rng(5)
    effect = smallest_difference(1.0, 60)
    found = [p < 0.05 for p in sign_flip_p(draw.normal(effect, 1.0, size=(60, 200)), seed=2)]
    assert sum(found) / len(found) == pytest.approx(0.8, abs=0.08)


def test_bootstrap_intervals_are_each_columns_own():
    values = np.array([[float(i % 2), 3.0, float(-(i % 2))] for i in range(400)])
    first, constant, mirrored = bootstrap_intervals(values, seed=0)
    half = 1.96 * (0.25 / 400) ** 0.5
    assert first == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=0.006)
    assert constant == pytest.approx((3.0, 3.0, 3.0))
    assert mirrored == pytest.approx((-first[0], -first[2], -first[1]), abs=0.003)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([0.83, 0.84, 0.85], [0.75, 0.76, 0.77], 2 / 20),  # apart: one deal of 20, and its mirror image
        ([0.1, 0.4], [0.2, 0.3], 1.0),  # the same mean
        ([1.0], [2.0, 3.0, 4.0], 2 / 4),  # apart by 2: as far as 1 against 3, or 4 against 2
    ],
)
def test_runs_of_two_methods_dealt_anew_by_hand(first, second, wanted):
    assert permutation_p(first, second) == pytest.approx(wanted)


def test_too_many_deals_are_not_counted():
    assert permutation_p(list(range(15)), list(range(15))) is None


def test_a_thousand_prompts_and_every_pair_of_ten_policies_take_seconds():
    differences = np.random.default_rng(0).normal(size=(1000, 45))
    started = time.process_time()
    sign_flip_p(differences, 0)
    bootstrap_intervals(differences, 0)
    assert time.process_time() - started < 10
