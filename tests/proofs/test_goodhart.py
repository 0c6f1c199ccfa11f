"""Over-optimisation happens, is measured exactly, and is reported with no more than the seeds show."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.proofs.goodhart import METHODS, Point, Seed, run_seeds
from tests.proofs.goodhart_report import conclusions, gold_at, matched, over_optimised, peak, sign_test, write_report

SEEDS, PAIRS = 5, 200
REPORT = Path(__file__).resolve().parents[2] / "build" / "goodhart"


def curve(*points: tuple[float, float, float]) -> list[Point]:
    return [Point(*point) for point in points]


RISES = curve((0, 0, 0), (1, 0.5, 1), (3, 1.5, 2))
TURNS = curve((0, 0, 0), (1, 1.0, 1), (2, 0.2, 2))


def seed(number: int, ppo: list[Point], dpo: list[Point]) -> Seed:
    return Seed(number, 0.6, {"ppo": ppo, "dpo": dpo}, frontier=curve((0, 0, 0), (4, 3, 1)), seconds=1.0)


@pytest.mark.parametrize(
    ("points", "verdict"),
    [
        (RISES, False),
        (TURNS, True),
        (curve((0, 0, 0), (1, 1.0, 1), (2, 0.95, 2)), False),
        (curve((0, 0, 0), (1, 1.0, 2), (2, 0.2, 1)), False),
    ],
    ids=["gold rises to the end", "gold falls while the proxy rises", "a fall too small to count", "both fall"],
)
def test_over_optimisation_is_a_fall_of_gold_while_the_proxy_rises(points, verdict):
    assert over_optimised(points) is verdict


def test_gold_is_compared_where_both_policies_are_equally_far_from_the_reference():
    assert peak(TURNS).kl == 1
    assert gold_at(RISES, 2.0) == pytest.approx(1.0)
    assert gold_at(TURNS, 0.5) == pytest.approx(0.5)
    assert gold_at(RISES, 3.0) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="ends before"):
        gold_at(RISES, 3.1)
    assert matched(seed(0, RISES, TURNS)) == (2, pytest.approx(1.0 - 0.2))


def test_five_seeds_of_five_are_still_no_proof():
    assert sign_test(5, 5) == pytest.approx(2 / 32)
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(4, 5) == pytest.approx(12 / 32)
    assert sign_test(2, 4) == 1.0
    seeds = [seed(number, RISES, TURNS) for number in range(5)]
    ppo, dpo, between = conclusions(seeds)
    assert "fell by more than 0.1 while the proxy rose in 0 of 5" in ppo
    assert "while the proxy rose in 5 of 5" in dpo and "0.80 below its peak" in dpo
    assert "ahead in 5 of 5" in between and "do not say which method is better" in between
    assert "that is a difference" in conclusions([seed(number, RISES, TURNS) for number in range(6)])[2]


def test_the_report_has_a_row_for_each_seed_and_a_picture(tmp_path):
    said = write_report([seed(0, RISES, TURNS), seed(7, TURNS, RISES)], PAIRS, tmp_path)
    assert "| 7 | 60.0% | 1.00 (1.0) | 0.20 (2.0) | 2.00 | 1.50 (3.0) | 1.50 (3.0) | 2.00 |" in said
    assert (tmp_path / "report.md").read_text() == said
    assert (tmp_path / "goodhart.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    """The study itself; its report is left in build/goodhart."""
    found = run_seeds(range(SEEDS), PAIRS)
    REPORT.mkdir(parents=True, exist_ok=True)
    print(write_report(found, PAIRS, REPORT))  # noqa: T201
    return found


@pytest.mark.slow
def test_every_policy_starts_as_the_reference_and_none_is_better_than_possible(seeds):
    """The frontier holds the maximisers of gold - kl_coef KL: on it no policy gains more gold for its KL."""
    for one in seeds:
        for name in METHODS:
            start = one.curves[name][0]
            assert math.isclose(start.kl, 0, abs_tol=1e-6) and math.isclose(start.gold, 0, abs_tol=1e-6)
            for point in one.curves[name]:
                assert point.kl > -1e-6
                assert all(point.gold <= best.gold for best in one.frontier if best.kl >= point.kl)


@pytest.mark.slow
def test_the_proxy_is_better_than_chance_and_worse_than_gold(seeds):
    assert all(0.5 < one.proxy_accuracy < 0.95 for one in seeds)


@pytest.mark.slow
def test_pushed_far_enough_the_proxy_rises_while_gold_falls(seeds):
    """Goodhart's law, in most seeds. That all of them show it is not promised, nor which method is the better."""
    for name in METHODS:
        curves = [one.curves[name] for one in seeds]
        assert sum(peak(points).gold > 0.1 for points in curves) >= 4, "at first both gain"
        assert all(points[-1].proxy > 0.5 for points in curves)
    assert sum(over_optimised(one.curves["ppo"]) for one in seeds) >= 3


@pytest.mark.slow
def test_the_report_says_what_the_seeds_show(seeds):
    said = (REPORT / "report.md").read_text()
    fell = sum(over_optimised(one.curves["ppo"]) for one in seeds)
    assert re.search(rf"PPO: .* while the proxy rose in {fell} of {SEEDS}", said)
