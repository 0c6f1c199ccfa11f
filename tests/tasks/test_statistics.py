from __future__ import annotations

import math

import pytest

from tasks.statistics import bootstrap_mean, mean_interval, share_interval, win_rate, wins


@pytest.mark.parametrize(
    ("successes", "n", "wanted"),
    [
        # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        (7, 10, (0.7, 0.39677815, 0.89220873)),
        (0, 10, (0.0, 0.0, 0.27753280)),
        (10, 10, (1.0, 0.72246720, 1.0)),
        (50, 100, (0.5, 0.40383153, 0.59616847)),
        (1, 1, (1.0, 0.20654931, 1.0)),
    ],
)
def test_wilsons_interval_of_a_share(successes: int, n: int, wanted: tuple[float, float, float]) -> None:
    assert share_interval([True] * successes + [False] * (n - successes)) == pytest.approx(wanted, abs=1e-6)


def test_the_normal_interval_of_a_mean() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    error = math.sqrt((5 / 3) / 4)  # sample variance 5/3, four values
    assert mean == 2.5
    assert (low, high) == pytest.approx((2.5 - 1.959964 * error, 2.5 + 1.959964 * error))
    assert mean_interval([7.0]) == (7.0, 7.0, 7.0)
    assert mean_interval([7.0, 7.0]) == (7.0, 7.0, 7.0)


def test_ties_are_half_a_win() -> None:
    pairs = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (3.0, 1.0)]
    assert wins(pairs) == [1.0, 0.0, 0.5, 1.0]
    assert win_rate(pairs, seed=0)[0] == 0.625


def test_winning_and_losing_add_up_to_one() -> None:
    pairs = [(float(i % 5), float(i % 3)) for i in range(60)]
    swapped = [(other, mine) for mine, other in pairs]
    assert win_rate(pairs, 0)[0] + win_rate(swapped, 0)[0] == pytest.approx(1.0)


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = [float(i % 2) for i in range(400)]
    mean, low, high = bootstrap_mean(values, seed=0)
    half = 1.96 * math.sqrt(0.25 / 400)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    import random

    draw = random.Random(0)
    covered = 0
    for trial in range(60):
        _, low, high = bootstrap_mean([draw.gauss(1.0, 1.0) for _ in range(30)], seed=trial)
        covered += low <= 1.0 <= high
    assert covered >= 51


def test_the_bootstrap_is_the_seeds() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 0.0, 1.0]
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1)
    assert bootstrap_mean([3.0] * 4, 0) == (3.0, 3.0, 3.0)
