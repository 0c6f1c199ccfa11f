"""The gate before a promotion: how conditions are read, what passes, and what can't be set side by side."""

from __future__ import annotations

import math

import pytest

from artifacts.errors import UserError
from pipelines.gate import ALWAYS, DECIDES, Measured, conditions, judge
from tasks.evaluate import Evaluate

ON = {"version": 3, "held_out": "rows", "max_prompts": 24, "max_new_tokens": 16, "reward": "judge", "against": "sft"}


def measured(on=ON, **figures):
    return Measured(figures, on)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("win_rate_low>0.5", "win_rate_low > 0.5"),
        (" eval/win_rate_low  > .5 ", "win_rate_low > 0.5"),
        ("score_mean>=-1.5e-1", "score_mean >= -0.15"),
        ("length_mean<40", "length_mean < 40"),
        ("check_rate>=champion", "check_rate >= champion"),
        ("check_rate >= champion - 0.02", "check_rate >= champion - 0.02"),
        ("kl_to_reference<=champion+.5", "kl_to_reference <= champion + 0.5"),
    ],
)
def test_a_condition_is_read_with_or_without_spaces(text, said):
    (condition,) = conditions([text], "--must")
    assert str(condition) == said


def test_a_mapping_says_the_same_as_words():
    words = conditions(["win_rate_low>0.5", "check_rate>=champion-0.02"], "--must")
    assert conditions({"win_rate_low": ">0.5", "check_rate": ">= champion-0.02"}, "must") == words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("win_rate_low", "in quotes"),
        ("win_rate_low=0.5", "wanted a metric, one of >= <= > <"),
        ("win_rate_low=>0.5", "got 'win_rate_low=>0.5'"),
        (">0.5", "wanted a metric"),
        ("win_rate_low>half", "a number, `champion` or such as `champion-0.02`"),
        ("win_rate_low>nan", "got 'win_rate_low>nan'"),
        ("win_rate_low>1e999", "got 'win_rate_low>1e999'"),
        ("win_rate_low>challenger", "got 'win_rate_low>challenger'"),
        ("win_rate_low>champion*2", "got 'win_rate_low>champion*2'"),
        ("win_rate_low>champion+-1", "got 'win_rate_low>champion+-1'"),
        ("win_rate_low>0.5 or so", "got 'win_rate_low>0.5 or so'"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_was_wanted(text, said):
    with pytest.raises(UserError) as caught:
        conditions([text], "--must")
    assert str(caught.value).startswith("--must: ") and said in str(caught.value)


def test_every_problem_of_a_mapping_has_a_line():
    with pytest.raises(UserError) as caught:
        conditions({"win_rate_low": 0.5, "check_rate": ">=champion", "loss": "below"}, "must")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("must: win_rate_low: wanted one of >= <= > <") and lines[0].endswith("got 0.5")
    assert lines[1].endswith("as in loss: '>0.5'; got 'below'")


@pytest.mark.parametrize(
    ("text", "wanted", "passed"),
    [
        ("check_rate>0.75", 0.75, False),  # it is just that
        ("check_rate>=0.75", 0.75, True),
        ("check_rate<0.75", 0.75, False),
        ("check_rate<=0.75", 0.75, True),
        ("check_rate>champion", 0.5, True),
        ("check_rate>=champion+0.5", 1.0, False),
        ("score_mean>=champion", 2.0, False),
        ("score_mean>=champion-1.5", 0.5, True),
    ],
)
def test_a_verdict_says_what_was_wanted_and_what_was_got(text, wanted, passed):
    mine, champion = measured(check_rate=0.75, score_mean=1.0), measured(check_rate=0.5, score_mean=2.0)
    (verdict,) = judge(conditions([text], "--must"), mine, champion)
    assert (verdict.wanted, verdict.passed) == (wanted, passed)
    assert verdict.got == mine.figures[verdict.condition.metric]


def test_the_first_champion_passes_what_asks_for_the_one_before_and_nothing_else():
    verdicts = judge(conditions(["check_rate>=champion", "check_rate>0.9"], "--must"), measured(check_rate=0.5), None)
    assert [(verdict.wanted, verdict.passed) for verdict in verdicts] == [(None, True), (0.9, False)]


@pytest.mark.parametrize("text", ["loss<3", "loss>=3", "loss<=champion", "loss>=champion"])
def test_no_number_passes_no_condition(text):
    (verdict,) = judge(conditions([text], "--must"), measured(loss=math.nan), measured(loss=1.0))
    assert not verdict.passed
    (verdict,) = judge(conditions(["loss<=champion"], "--must"), measured(loss=1.0), measured(loss=math.nan))
    assert not verdict.passed


def test_a_metric_that_was_not_measured_is_named_with_those_that_were():
    with pytest.raises(UserError) as caught:
        judge(conditions(["chek_rate>0.5", "kl>1"], "--must"), measured(check_rate=0.5, loss=2.0), None)
    assert str(caught.value).splitlines() == [
        "chek_rate: no such figure in the report; did you mean 'check_rate'?; there are check_rate, loss",
        "kl: no such figure in the report; there are check_rate, loss",
    ]


def test_a_figure_that_only_the_champion_lacks_is_said():
    with pytest.raises(UserError, match=r"check_rate: the champion has no such figure, only loss; promote it again"):
        judge(conditions(["check_rate>champion"], "--must"), measured(check_rate=0.5), measured(loss=2.0))


@pytest.mark.parametrize(
    ("metric", "changed", "refused"),
    [
        ("check_rate", {"held_out": "other"}, "held_out rows (the champion's: other)"),
        ("check_rate", {"max_prompts": 8}, "max_prompts 24 (the champion's: 8)"),
        ("check_rate", {"max_new_tokens": 48}, "max_new_tokens 16 (the champion's: 48)"),
        ("check_rate", {"temperature": 1.0}, "temperature left out (the champion's: 1.0)"),
        ("check_rate", {"version": 2}, "version 3 (the champion's: 2)"),
        ("check_rate", {"reward": "other", "against": "other", "max_scored": 4}, None),  # a check is its own judge
        ("score_mean_low", {"reward": "another model"}, "reward judge (the champion's: another mode)"),
        ("win_rate_low", {"against": "dpo"}, "against sft (the champion's: dpo)"),
        ("loss", {"max_scored": 4}, "max_scored left out (the champion's: 4)"),
        ("loss", {"temperature": 1.0, "reward": "other"}, None),
        ("kl_to_reference", {"reference": "base"}, "reference left out (the champion's: base)"),
        ("something_new", {"unheard_of": 1}, "unheard_of left out (the champion's: 1)"),
    ],
)
def test_figures_stand_side_by_side_only_if_what_decides_them_was_the_same(metric, changed, refused):
    mine, champion = measured(**{metric: 0.5}), measured({**ON, **changed}, **{metric: 0.5})
    must = conditions([f"{metric}>=champion"], "--must")
    if refused is None:
        assert judge(must, mine, champion)[0].passed
        return
    with pytest.raises(UserError) as caught:
        judge(must, mine, champion)
    assert refused in str(caught.value) and "measured otherwise" in str(caught.value)
    assert judge(conditions([f"{metric}>0.4"], "--must"), mine, champion)[0].passed  # a number needs no champion


def test_what_decides_a_figure_is_what_an_evaluation_really_has():
    named = {name for names in DECIDES.values() for name in names} | set(ALWAYS)
    assert named - {"version", "held_out"} <= set(Evaluate.model_fields)
    assert {"against", "reference", "reward"} <= set(Evaluate.inputs())
