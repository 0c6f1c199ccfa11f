"""Which policies are set against each other, in what measure, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.comparison.methods import Method
from pipelines.comparison.pairs import pairs_of, wiring
from pipelines.comparison.policies import Compared


def policy(name: str, outcomes: list[bool | float | tuple], against: str | None = None) -> Compared:
    """Booleans are checks, numbers are scores."""
    completions = [
        {"row": row, "passed": one} if isinstance(one, bool) else {"row": row, "score": one}
        for row, one in enumerate(outcomes)
    ]
    return Compared(name, {}, {}, completions, against, key=f"key of {name}")


def methods(*policies: Compared) -> list[Method]:
    return [Method(one.name, (one,)) for one in policies]


def named(pairs) -> list[str]:
    return [f"{after.name} - {before.name}" for before, after in pairs]


def test_branches_are_compared_with_what_they_branched_from_and_all_with_each_other():
    base, sft = policy("base", [False] * 8), policy("sft", [True, False] * 4, "key of base")
    branches = [policy(name, [True] * 8, "key of sft") for name in ("dpo", "ppo", "kto")]
    wired = named(wiring(methods(base, sft, *branches)))
    assert wired == ["sft - base", "dpo - sft", "ppo - sft", "ppo - dpo", "kto - sft", "kto - dpo", "kto - ppo"]


def test_branches_are_compared_with_each_other_where_their_root_is_not_shown():
    branches = [policy(name, [True], "key of sft") for name in ("dpo", "ppo", "kto")]
    assert named(wiring(methods(*branches))) == ["ppo - dpo", "kto - dpo", "kto - ppo"]


def test_without_a_named_report_each_policy_is_compared_with_the_one_before_it():
    assert named(wiring(methods(policy("one", []), policy("two", [])))) == ["two - one"]
    assert named(wiring(methods(policy("one", [], "elsewhere"), policy("two", [], "elsewhere too")))) == ["two - one"]
    assert wiring(methods(policy("one", [], "key of one"))) == []


def test_checks_are_compared_by_mcnemars_test():
    before = policy("one", [False] * 8 + [True] * 2 + [True] * 10)
    after = policy("two", [True] * 8 + [False] * 2 + [True] * 10)
    (pair,) = pairs_of(methods(before, after))
    assert (pair.measure, pair.prompts, pair.difference) == ("check rate", 20, pytest.approx(0.3))
    assert pair.p == pytest.approx(112 / 1024) and pair.verdict == "no clear difference"
    assert str(pair) == f"two - one: +30.0% [{pair.low:+.1%}, {pair.high:+.1%}], p = 0.11, no clear difference"


def test_without_checks_scores_are_compared():
    before = policy("one", [0.1 * row for row in range(12)])
    after = policy("two", [0.1 * row + 0.5 + 0.01 * row for row in range(12)])
    (pair,) = pairs_of(methods(before, after))
    assert (pair.measure, pair.difference) == ("score", pytest.approx(0.555))
    assert pair.p == pytest.approx(2 / 2**12) and pair.verdict == "ahead"
    assert str(pair).startswith("two - one: +0.56 [+0.5") and str(pair).endswith("p < 0.001, ahead")


def test_where_some_rows_have_a_check_and_others_a_score_wins_are_counted():
    """Never a mean of shares and scores: a reward model's scale would decide it."""
    before, after = policy("one", [False, True, 100.0, 1.0]), policy("two", [True, True, 0.0, 2.0])
    (pair,) = pairs_of(methods(before, after))
    assert (pair.measure, pair.difference) == ("net wins", pytest.approx((1 + 0 - 1 + 1) / 4))


def test_all_pairs_that_are_shown_are_corrected_together():
    base = policy("sft", [False] * 12, None)
    better = [policy(name, [True] * 7 + [False] * 5, "key of sft") for name in ("dpo", "ppo", "kto")]
    found = pairs_of(methods(base, *better))
    assert [pair.p for pair in found] == pytest.approx([2 / 2**7, 2 / 2**7, 1, 2 / 2**7, 1, 1])
    # The three small ones are times six, the number of pairs, and then no smaller than that.
    assert [pair.p_holm for pair in found] == pytest.approx([6 * 2 / 2**7, 6 * 2 / 2**7, 1, 6 * 2 / 2**7, 1, 1])
    assert found[0].verdict == "no clear difference" and pairs_of(methods(base, better[0]))[0].verdict == "ahead"


def test_only_prompts_that_every_policy_was_judged_on_count():
    short = Compared("two", {}, {}, [{"row": 2, "passed": True}, {"row": 3, "passed": True}], None, key="key of two")
    (pair,) = pairs_of(methods(policy("one", [True, True, False, True]), short))
    assert (pair.prompts, pair.difference) == (2, 0.5)


def test_without_any_judge_there_are_no_pairs():
    unjudged = [Compared(name, {}, {}, [{"row": 0, "completion": ""}], key=name) for name in ("one", "two")]
    assert pairs_of(methods(*unjudged)) == []
    assert pairs_of([]) == []


def test_seeds_are_a_mean_by_prompt_and_a_test_of_their_own():
    def seeds(name: str, rates: list[float], outcomes: list[list[bool]]) -> Method:
        runs = [policy(f"{name}@seed={i}", one, "key of sft") for i, one in enumerate(outcomes)]
        for one, rate in zip(runs, rates, strict=True):
            one.metrics["eval/check_rate"] = rate
        return Method(name, tuple(runs))

    dpo = seeds("dpo", [0.5, 0.5], [[True, False], [True, False]])
    ppo = seeds("ppo", [1.0, 0.5], [[True, True], [True, False]])
    (pair,) = pairs_of([dpo, ppo])
    assert (pair.after, pair.before, pair.difference) == ("ppo", "dpo", pytest.approx(0.25))
    assert pair.p_seeds == 1.0  # means 0.25 apart; every deal of 0.5, 0.5, 0.5, 1 in two pairs is
    assert pairs_of(methods(policy("one", [True]), policy("two", [True])))[0].p_seeds is None


def test_win_rates_over_unlike_opponents_are_no_ground_for_a_test_over_seeds():
    """Where checks decide some rows and scores others there is nothing else that every seed has."""
    base = methods(policy("base", [True, 0.5]))[0]
    sft, again = (
        Method(name, tuple(_seeds(name, against, 2)))
        for name, against in (("sft", "key of base"), ("dpo", "key of sft"))
    )
    assert pairs_of([base, sft, again])[1].p_seeds is None
    other = Method("kto", tuple(_seeds("kto", "key of sft", 2)))
    alike = next(pair for pair in pairs_of([base, sft, again, other]) if (pair.before, pair.after) == ("dpo", "kto"))
    assert alike.p_seeds is not None


def _seeds(name: str, against: str, count: int) -> list[Compared]:
    runs = [policy(name if seed == 0 else f"{name} {seed}", [True, 1.0], against) for seed in range(count)]
    return [replace(run, metrics={"eval/win_rate": 0.5}) for run in runs]
