"""The rules of a judge against figures worked by hand."""

from __future__ import annotations

import json

import pytest

from artifacts.errors import DataError
from artifacts.jsonl import read_jsonl
from tasks.judging.pairs import Pair, choice_in, paired
from tests.tasks.judging.conftest import write_report
from tests.tasks.judging.judge_server import longer, the_first


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", "A"), ("  B \n", "B"), ("tie", "tie"), ("Both obey it.\n\nB\n", "B"), ("A\nA", "A"), ("A\r\n", "A"),
        ("", None), ("a", None), ("A.", None), ("**A**", None), ("Answer: A", None), ("I take A", None),
        ("A\nB", None), ("A\n\nNo, it is a\ntie", None), ("[[A]]", None), ("Tie", None),
    ],
)  # fmt: skip
def test_an_answer_is_one_of_three_words_on_a_line_of_its_own(text, choice):
    assert choice_in(text) == choice


def test_texts_that_look_like_places_are_left_as_they_are():
    pair = Pair(1, "say {first}", {"completion": '{"json": "{second}"}'}, {"completion": "{prompt}"})
    straight, swapped = pair.questions("{prompt} / {first} / {second} / {other}")
    assert straight.text == 'say {first} / {"json": "{second}"} / {prompt} / {other}'
    assert swapped.text == 'say {first} / {prompt} / {"json": "{second}"} / {other}'


def test_only_prompts_that_both_have_are_paired_and_the_others_counted(tmp_path):
    mine, theirs = write_report(tmp_path / "mine", ["a", "b", "c"]), write_report(tmp_path / "theirs", ["d", "e"])
    rows = read_jsonl(theirs.path / "completions.jsonl")
    rows[1]["prompt"] = "another"
    (theirs.path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    pairs, apart = paired(mine.path, theirs.path)
    assert [(pair.row, pair.prompt, pair.mine["completion"], pair.other["completion"]) for pair in pairs] == [
        (1, "p0", "a", "d")
    ]
    assert apart == 3  # rows 2 and 3 of one, row 2 of the other


def test_reports_on_other_prompts_are_refused_with_what_differs(tmp_path):
    mine, theirs = write_report(tmp_path / "mine", ["a"]), write_report(tmp_path / "theirs", ["b"])
    row = json.loads((theirs.path / "completions.jsonl").read_text())
    (theirs.path / "completions.jsonl").write_text(json.dumps({**row, "prompt": "Say no."}) + "\n")
    with pytest.raises(DataError, match=r"share no prompt: row 1 is 'p0' in one and 'Say no.' in the other"):
        paired(mine.path, theirs.path)
    (theirs.path / "completions.jsonl").write_text(json.dumps({**row, "row": 7}) + "\n")
    with pytest.raises(DataError, match="one has the rows 1 to 1, the other 7 to 7"):
        paired(mine.path, theirs.path)


def test_win_rate_ties_and_agreement_by_hand(judging, served, tmp_path):
    """The longer one wins: 3 wins, 1 loss, 2 ties (one of them two equal completions), so (3 + 2 / 2) / 6."""
    mine = write_report(
        tmp_path / "one", ["long", "long", "long", "x", "same", "even"], reward="r",
        score=[1.0, 0.0, 2.0, 0.0, 5.0, 9.0], passed=[True, True, False, False, True, True],
    )  # fmt: skip
    theirs = write_report(
        tmp_path / "two", ["x", "x", "x", "long", "same", "odd!"], reward="r",
        score=[0.0, 1.0, 2.0, 3.0, 5.0, 0.0], passed=[False, True, False, True, True, False],
    )  # fmt: skip
    server = served(longer)
    stage = judging(server, report=mine, against=theirs)
    metrics = stage.run()
    assert stage.verdicts() == ["win", "win", "win", "loss", "tie", "tie"]
    assert metrics["judge/win_rate"] == pytest.approx(4 / 6)
    assert metrics["judge/win_rate_low"] < 4 / 6 < metrics["judge/win_rate_high"]
    assert metrics["judge/ties"] == pytest.approx(2 / 6)
    assert (metrics["judge/pairs"], metrics["judge/identical"]) == (6, 1)
    assert len(server.bodies) == 10, "nobody is asked about two equal completions"
    # Scores differ in rows 1, 2 and 4 of those decided: the judge agrees on 1 and 4. Checks differ in 1 and 4.
    assert metrics["judge/agreement_reward"] == pytest.approx(2 / 3)
    assert metrics["judge/agreement_reward_pairs"] == 3
    assert metrics["judge/agreement_check"] == 1 and metrics["judge/agreement_check_pairs"] == 2
    assert metrics["judge/agreement_check_low"] == pytest.approx(2 / (2 + 1.959964**2)), "Wilson: n / (n + z^2)"
    assert metrics["judge/position_bias"] == 0.5
    assert (metrics["judge/nonsense"], metrics["judge/failed"]) == (0, 0)
    assert metrics["judge/tokens"] == 100
    about = json.loads((stage.draft / "out" / "verdicts.json").read_text())
    assert (about["report"], about["against"], about["judge"]) == ("one", "two", "judge")
    assert about["answered_by"] == ["judge-1"] and about["metrics"] == metrics
    assert server.url not in json.dumps(about)


def test_scores_of_two_reward_models_are_not_compared(judging, served, tmp_path):
    mine = write_report(tmp_path / "one", ["long"], reward="r", score=[1.0])
    theirs = write_report(tmp_path / "two", ["x"], reward="another", score=[0.0])
    metrics = judging(served(longer), report=mine, against=theirs).run()
    assert metrics["judge/win_rate"] == 1
    assert not [name for name in metrics if "agreement" in name]


def test_a_judge_that_always_takes_the_first_decides_nothing(judging, served):
    stage = judging(served(the_first))
    metrics = stage.run()
    assert set(stage.verdicts()) == {"tie"}
    assert metrics["judge/win_rate"] == 0.5 and metrics["judge/ties"] == 1
    assert metrics["judge/position_bias"] == 1


def test_one_order_undecided_is_a_tie(judging, served):
    stage = judging(served(lambda prompt, first, second: "A" if first.startswith("mine") else "tie"))
    metrics = stage.run()
    assert set(stage.verdicts()) == {"tie"} and metrics["judge/position_bias"] == 1


def test_max_prompts_takes_the_first(judging, served):
    server = served(longer)
    assert judging(server, max_prompts=3).run()["judge/pairs"] == 3
    assert {text.split("|")[0] for text in server.asked} == {"p0", "p1", "p2"}
