"""Spikes, alarms and early ends, told from the metrics that a training left."""

from __future__ import annotations

import json
import random

import pytest

from pipelines.comparison.stability import Stability, spikes


def test_a_loss_far_above_the_median_before_it_is_a_spike():
    # Median 2.0, absolute deviations 0 or 0.2, their median 0.2: one deviation is 0.2965, six are 1.779.
    steady = [1.8, 2.0, 2.2, 1.8, 2.2, 1.8, 2.2, 2.0, 1.8, 2.2]
    assert spikes([*steady, 3.77]) == []
    assert spikes([*steady, 3.79]) == [10]
    assert spikes([*steady, 3.79, 2.0, 9.0, 2.0]) == [10, 12]


def test_a_fall_is_no_spike_and_neither_is_a_loss_that_hardly_moves():
    assert spikes([2.0] * 10 + [0.1] * 10) == []
    assert spikes([0.6931] * 10 + [0.70, 0.75, 0.66, 0.80]) == []
    # 30% above the median is the least.
    assert spikes([1.0] * 10 + [1.299]) == []
    assert spikes([1.0] * 10 + [1.301]) == [10]


def test_nothing_is_judged_by_fewer_than_eight_losses():
    assert spikes([1.0] * 7 + [50.0]) == []
    assert spikes([1.0] * 8 + [50.0]) == [8]


def test_noise_alone_has_next_to_none():
    draw = random.Random(0)
    found = [len(spikes([draw.gauss(2.0, 0.2) for _ in range(100)])) for _ in range(50)]
    assert sum(found) / len(found) < 0.2


@pytest.fixture
def read(tmp_path):
    def read(points, planned=None):
        path = tmp_path / "metrics.jsonl"
        lines = [{"step": n, "optimizer_step": step, "metrics": metrics} for n, (step, metrics) in enumerate(points)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Stability.read(path, planned)

    return read


def test_a_training_that_went_as_planned_has_nothing_to_say(read):
    found = read([(step, {"train/loss": 1.0}) for step in range(1, 21)], planned=20)
    assert found == Stability(planned=20) and found.phrases() == []


def test_spikes_are_named_by_their_optimizer_steps(read):
    losses = [1.0] * 10 + [9.0] + [1.0] * 4
    found = read([(8 * n, {"loss/value_avg": loss, "loss/policy_avg": -loss}) for n, loss in enumerate(losses, 1)])
    assert found.spikes == [88] and found.phrases() == ["1 spike"]


def test_alarms_and_updates_cut_short_are_counted(read):
    points = [(4, {"alarms/value": 1.0, "policy/stopped_early": 0.0})]
    points += [(8, {"alarms/value": 1.0, "alarms/length": 1.0, "policy/stopped_early": 1.0})]
    found = read(points, planned=8)
    assert found.alarms == {"value": 2, "length": 1} and found.cut_short == 1
    assert found.phrases() == ["alarm length 1x", "alarm value 2x", "1 update cut short"]


@pytest.mark.parametrize(
    ("steps", "planned", "ended"),
    [
        ([4, 8, 12], 12, None),
        ([4, 8, 12], 40, 12),
        ([10, 20], 25, None),  # a point every ten steps: the last five left none
        ([10, 20], 30, 20),
        ([0, 1, 2], 2, None),
        ([5], None, None),
    ],
)
def test_a_training_that_ended_early_lacks_points_at_its_end(read, steps, planned, ended):
    found = read([(step, {"train/loss": 1.0}) for step in steps], planned)
    assert found.ended_at == ended
    assert found.phrases() == ([f"ended at {ended} of {planned} steps"] if ended else [])


def test_a_stage_without_metrics_has_no_stability(tmp_path):
    assert Stability.read(tmp_path / "metrics.jsonl", 10) is None
