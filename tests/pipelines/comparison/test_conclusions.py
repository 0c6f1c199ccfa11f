"""What is said in plain sentences, and that it is no more than was shown."""

from __future__ import annotations

import pytest

from pipelines.comparison.conclusions import conclusions
from pipelines.comparison.methods import Method
from pipelines.comparison.pairs import pairs_of
from pipelines.comparison.policies import Compared


def method(name: str, passed: list[bool], against: str | None = None, seeds: int = 1) -> Method:
    completions = [{"row": row, "passed": one} for row, one in enumerate(passed)]
    runs = [
        Compared(f"{name} {i}", {"eval/check_rate": sum(passed) / len(passed)}, {}, completions, against, f"{name} {i}")
        for i in range(seeds)
    ]
    return Method(name, tuple(runs))


def said(*methods: Method) -> list[str]:
    return conclusions(methods, pairs_of(methods))


def test_who_is_ahead_of_whom_and_who_can_not_be_told_apart():
    sft = method("sft", [False] * 40)
    found = said(sft, method("dpo", [True] * 30 + [False] * 10, "sft 0"), method("ppo", [True] + [False] * 39, "sft 0"))
    assert found[0] == (
        "By check rate on 40 prompts, 3 paired permutation tests at 5%, with Holm's correction for all of them: dpo "
        "ahead of sft; ppo not told apart from sft."
    )


def test_what_so_many_prompts_can_not_tell_by_hand():
    # Half of 64 prompts differ by 1: mean 1/2, deviation sqrt(16/63), 2.8016 standard errors are 17.65 points.
    found = said(method("one", [False] * 64), method("two", [True] * 32 + [False] * 32))
    assert found[1] == (
        "64 prompts like these can't tell differences below about 18 points: a true one of that size is found four "
        "times in five (at the median spread of the pairs that differ), a smaller one less often. No clear difference "
        "is no proof that there is none."
    )
    assert found[0].startswith("By check rate on 64 prompts, a paired permutation test at 5%: two ahead of one.")


def test_policies_that_never_differ_leave_it_unknown_what_would_show():
    found = said(method("one", [True] * 8), method("two", [True] * 8))
    assert found[1].startswith("On none of 8 prompts do any two of them differ")


def test_one_seed_says_nothing_of_others():
    assert said(method("one", [True, False]), method("two", [True, True]))[-1] == (
        "Each was trained with one seed: nothing is said of other seeds."
    )


def test_several_seeds_are_told_with_their_spread_and_what_so_few_runs_can_show():
    one, two = method("one", [True, False], seeds=3), method("two", [True, True], seeds=3)
    for rate, first, second in zip((0.40, 0.50, 0.60), one.policies, two.policies, strict=True):
        first.metrics["eval/check_rate"], second.metrics["eval/check_rate"] = rate, rate + 0.4
    found = said(one, two, method("three", [False, True]))
    assert found[2:] == [
        "Over seeds, check rate and standard deviation: one 50.0%±10.0% (3 seeds, 40.0% to 60.0%); two 90.0%±10.0% "
        "(3 seeds, 80.0% to 100.0%).",
        "Over seeds, how often 3 and 3 runs dealt at random differ as much: two - one 0.10; it can't be below 0.10, so "
        "that they alone can't show one at 5%.",
        "three: one seed, so that nothing is said of others.",
    ]


def test_what_was_never_trained_lacks_no_seeds():
    methods = [method("base", [False, True]), method("dpo", [True, True], seeds=3)]
    assert not any("one seed" in line for line in conclusions(methods, pairs_of(methods), {"base"}))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_is_concluded_from_nothing(count):
    unjudged = [Method(name, (Compared(name, {}, {}, [{"row": 0}], key=name),)) for name in ("one", "two")[:count]]
    assert len(conclusions(unjudged, pairs_of(unjudged))) == (count == 2)
