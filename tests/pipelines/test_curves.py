"""The picture of a training."""

from __future__ import annotations

import json

from pipelines.curves import curves


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
