"""The comparison: which policies are set against each other, and the pictures."""

from __future__ import annotations

import json

from pipelines.compare import Compared, differences
from pipelines.curves import curves


def policy(name: str, passed: list[bool], against: str | None = None) -> Compared:
    completions = [{"row": row, "passed": one} for row, one in enumerate(passed)]
    return Compared(name, {}, {}, completions, against, key=f"key of {name}")


def test_branches_are_compared_with_what_they_branched_from_and_with_each_other():
    base, sft = policy("base", [False] * 8), policy("sft", [True, False] * 4, "key of base")
    dpo, ppo = policy("dpo", [True] * 8, "key of sft"), policy("ppo", [True] * 8, "key of sft")
    said = [line.split(":")[0] for line in differences([base, sft, dpo, ppo])]
    assert said == ["sft - base", "dpo - sft", "ppo - sft", "ppo - dpo"]


def test_without_a_named_report_each_policy_is_compared_with_the_one_before_it():
    said = differences([policy("one", [False] * 4), policy("two", [True] * 4)])
    assert said == ["two - one: +100.0% [+100.0%, +100.0%], ahead"]


def test_curves_shows_the_metrics_that_have_a_course_and_only_those(tmp_path):
    path = tmp_path / "metrics.jsonl"
    points = [
        {"step": 8 * i, "optimizer_step": i, "metrics": {"objective/kl": i / 10, "objective/scores": -i, "other": 1.0}}
        for i in range(30)
    ]
    points.append({"step": 240, "optimizer_step": 30, "metrics": {"validation/loss": 2.0}})
    path.write_text("".join(json.dumps(point) + "\n" for point in points))
    figure = curves(path, "ppo")
    assert figure is not None
    drawn = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in drawn] == ["score", "KL to the reference (nats a completion)"]
    assert list(drawn[0].lines[0].get_xdata()) == [8 * i for i in range(30)]
    figure.savefig(tmp_path / "curves.png")


def test_no_curves_without_points(tmp_path):
    assert curves(tmp_path / "metrics.jsonl") is None
