"""Signs of trouble are said once and logged always; limits end the stage with the best policy; NaN ends it at once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from artifacts.errors import StageError
from tasks.context import Execution
from tasks.rl import update
from tasks.rl.alarms import ALARMS, ringing
from tasks.rl.roles import Roles
from tests.tasks.rl.runs import World, adapter_of, lines_in, loop_of, one_thread, run, same  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")
HEALTHY = {
    "val/first_ratio_deviation": 0.0, "objective/kl": 0.0, "sampling/logp_difference": 1e-6,
    "policy/clipfrac_avg": 0.05, "policy/approxkl_avg": 0.01, "val/explained_variance": 0.5,
    "completions/mean_length": 20.0, "objective/scores": 1.0, "policy/entropy": 2.0, "completions/clipped_ratio": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.build(tmp_path_factory.mktemp("world"))


# Alarms


def history(*changes: tuple[int, dict[str, float]]) -> list[dict[str, float]]:
    """(how many rollouts, what is not healthy in them), one after another."""
    return [HEALTHY | changed for count, changed in changes for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "rings", "quiet"),
    [
        ("first_ratio", history((1, {"val/first_ratio_deviation": 1e-3})),
         history((1, {"val/first_ratio_deviation": 1e-3}), (1, {}))),
        ("start_kl", history((1, {"objective/kl": -0.01})), history((1, {}), (1, {"objective/kl": 0.01}))),
        ("negative_kl", history((2, {}), (3, {"objective/kl": -0.2})), history((2, {"objective/kl": -0.2}))),
        ("negative_kl", history((3, {"objective/kl": -0.2})), history((3, {"objective/kl": -0.2}), (1, {}))),
        ("sampler", history((1, {"sampling/logp_difference": 0.06})), history((1, {"sampling/logp_difference": 0.04}))),
        ("clip_fraction", history((1, {"policy/clipfrac_avg": 0.31})), history((1, {"policy/clipfrac_avg": 0.3}))),
        ("update_kl", history((1, {"policy/approxkl_avg": 0.11})), history((1, {"policy/approxkl_avg": 0.1}))),
        ("value", history((6, {}), (5, {"val/explained_variance": -0.1})),
         history((5, {}), (5, {"val/explained_variance": -0.1}))),
        ("length", history((7, {}), (3, {"completions/mean_length": 27.0, "objective/scores": 1.5})),
         history((7, {}), (3, {"completions/mean_length": 27.0}))),
        ("entropy", history((3, {}), (1, {"policy/entropy": 0.39})), history((3, {}), (1, {"policy/entropy": 0.41}))),
        ("truncated", history((3, {"completions/clipped_ratio": 0.81})),
         history((2, {"completions/clipped_ratio": 0.81}))),
    ],
)  # fmt: skip
def test_an_alarm_rings_for_its_sign_and_not_just_before(name, rings, quiet):
    assert name in [alarm.name for alarm in ringing(rings)]
    assert name not in [alarm.name for alarm in ringing(quiet)]


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_a_healthy_run_rings_nothing(count):
    assert ringing(history((count, {}))) == []


def test_completions_that_nothing_ends_are_cut_off_without_an_alarm():
    points = history((3, {"completions/clipped_ratio": 1.0}))
    assert [alarm.name for alarm in ringing(points)] == ["truncated"]
    assert ringing(points, ends=False) == []


def test_every_alarm_names_its_sign_and_cause():
    assert len({alarm.name for alarm in ALARMS}) == len(ALARMS) == 10
    assert all(alarm.sign and alarm.cause for alarm in ALARMS)


def test_an_alarm_is_said_once_and_logged_every_time(world, tmp_path, capsys):
    ran = run(tmp_path, **world.fields(learning_rate=0.1, total_episodes=16, schedule="constant"))
    rung = [point.get("alarms/clip_fraction") for point in ran.points()]
    assert rung.count(1.0) > 1 and set(rung) <= {1.0, None}
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: clip_fraction")]
    assert said == [
        "warning: clip_fraction: more than 30% of the tokens' ratios are clipped; likely cause: learning_rate is too "
        "high, or num_ppo_epochs too many"
    ]


def test_scoring_and_training_that_disagree_are_noticed(world, tmp_path, monkeypatch, capsys):
    """As would dropout, another precision or wrong positions in one of the two passes."""
    real = update.ratio
    monkeypatch.setattr(update, "ratio", lambda new, old, mask: real(new + 0.01, old, mask))
    ran = run(tmp_path, **world.fields())
    assert ran.only("val/first_ratio_deviation")[0] == pytest.approx(math.exp(0.01) - 1, rel=1e-3)
    assert "warning: first_ratio" in capsys.readouterr().out


def test_another_reference_than_the_start_is_noticed(world, tmp_path, capsys):
    loop = loop_of(tmp_path, **world.fields())
    with torch.no_grad():
        for name, parameter in loop.roles.reference.model.named_parameters():
            if ".reference." in name:
                parameter.mul_(1.5)
    loop.run()
    assert "warning: start_kl" in capsys.readouterr().out


def test_a_sampler_with_a_hidden_warper_is_noticed(world, tmp_path, monkeypatch, capsys):
    loop = loop_of(tmp_path, **world.fields(total_episodes=4))
    loop.sampler.temperature = 0.5
    loop.run()
    assert "warning: sampler" in capsys.readouterr().out


# Limits


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    taken: list[str] = []
    real = update.Update._step
    monkeypatch.setattr(update.Update, "_step", lambda self, *given: (taken.append(given[0]), real(self, *given))[1])
    return taken


def test_early_stop_kl_skips_the_rest_of_a_rollout_and_after_three_in_a_row_the_stage_ends(
    world, tmp_path, monkeypatch, capsys
):
    taken = steps_taken(monkeypatch)
    ran = run(tmp_path, **world.fields(early_stop_kl=1e-9, total_episodes=40, num_ppo_epochs=4))
    assert taken == ["policy", "value"] * 3, "the first step is always at ratio 1, the second is over the limit"
    assert ran.only("policy/stopped_early") == [1.0, 1.0, 1.0]
    assert [line["optimizer_step"] for line in ran.lines()] == [4, 8, 12]
    said = capsys.readouterr().out
    assert "stops after 3 of 10 rollouts: early_stop_kl 1e-09 ended the update 3 rollouts in a row; keeps" in said


def test_a_rollout_that_went_through_starts_the_count_anew(world, tmp_path):
    loop = loop_of(tmp_path, **world.fields(early_stop_kl=1.0))
    loop.best = {}
    ends = [loop._why_stop({"policy/stopped_early": early, "objective/kl": 0.0}) for early in (1, 1, 0, 1, 1, 1)]
    assert [end is not None for end in ends] == [False] * 5 + [True]


def test_a_generous_limit_changes_nothing(world, tmp_path):
    plain = run(tmp_path / "plain", **world.fields())
    limited = run(tmp_path / "limited", **world.fields(early_stop_kl=1e3, max_kl=1e3))
    assert same(plain.adapter(), limited.adapter()) and plain.points() == limited.points()


def test_max_kl_ends_the_stage_with_the_best_policy_within_it_and_says_so(world, tmp_path, capsys):
    """Which one that is, from what each rollout showed; `tensors` are those that wrote it."""
    fields = world.fields(max_kl=0.5, total_episodes=80, learning_rate=2e-2, schedule="constant")
    loop = loop_of(tmp_path / "watched", **fields)
    seen: list[tuple[float, float, dict[str, Tensor]]] = []
    score = loop.scorer

    def watched(*given: Any) -> Any:
        rollout = score(*given)
        kl = float(torch.where(rollout.mask, rollout.logps - rollout.ref_logps, 0.0).sum(dim=1).mean())
        seen.append((float(rollout.scores.mean()) - 0.05 * kl, kl, loop.roles.policy.tensors()))
        return rollout

    loop.scorer = watched  # type: ignore[assignment]
    loop.run()
    assert 1 < len(seen) < 20 and seen[-1][1] > 0.5 and all(kl <= 0.5 for _, kl, _ in seen[:-1])
    best = max(range(len(seen) - 1), key=lambda i: seen[i][0])
    assert same(loop.roles.policy.tensors(), seen[best][2])
    said = capsys.readouterr().out
    assert f"stops after {len(seen)} of 20 rollouts: the KL of {seen[-1][1]:.3g} nats is over max_kl 0.5; " in said
    assert (
        f"keeps the policy of rollout {best + 1} with reward {seen[best][0]:.3g} at a KL of {seen[best][1]:.3g}" in said
    )
    ran = run(tmp_path / "stage", **fields)
    kept = {name.replace(".policy.", "."): tensor for name, tensor in seen[best][2].items()}
    assert same(ran.adapter(), kept)


def test_the_held_out_figures_after_a_stop_are_those_of_the_policy_that_was_kept(world, tmp_path):
    fields = world.fields(max_kl=1e-6, total_episodes=40, eval_rows=4)
    ran = run(tmp_path, **fields)
    assert same(ran.adapter(), adapter_of(world.policy)), "only the first rollout was within so low a limit"
    assert ran.metrics["validation/kl"] == 0.0
    assert ran.metrics["validation/score"] == ran.metrics["validation/score_before"]


# NaN


def test_scores_that_are_no_numbers_end_the_stage_at_once(world, tmp_path, monkeypatch):
    real, calls = Roles.scores, []

    def scores(self: Roles, states: Tensor) -> Tensor:
        calls.append(1)
        return real(self, states) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Roles, "scores", scores)
    execution = Execution(threads=1, device="cpu", save_interval=1)
    with pytest.raises(StageError, match="nan"):
        run(tmp_path, **world.fields(total_episodes=40, execution=execution))
    assert len(calls) == 3 and len(lines_in(tmp_path)) == 2
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("field", ["learning_rate", "value_learning_rate"])
def test_a_learning_rate_far_too_high_ends_the_stage_at_once(world, tmp_path, field):
    with pytest.raises(StageError, match=r"became (nan|inf|-inf)"):
        run(tmp_path, **world.fields(total_episodes=40, **{field: 1e30}))
    assert len(lines_in(tmp_path)) < 2
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if lines_in(tmp_path) else []:
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} in the metrics"))


@pytest.mark.parametrize("field", ["learning_rate", "value_learning_rate"])
def test_a_gradient_that_is_no_number_is_never_stepped_on(world, tmp_path, monkeypatch, field):
    which = "policy_loss" if field == "learning_rate" else "value_loss"
    real = getattr(update, which)

    def broken(*given: Any, **more: Any) -> Tensor:
        loss = real(*given, **more)
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(update, which, broken)
    loop = loop_of(tmp_path, **world.fields())
    role = loop.roles.policy if field == "learning_rate" else loop.roles.value
    start = role.tensors()
    with pytest.raises(StageError, match=rf"gradient became nan; lower {field}"):
        loop.run()
    assert same(role.tensors(), start)


def test_a_policy_that_its_very_last_step_broke_is_not_handed_on(world, tmp_path):
    """No later step would notice: one rollout, one epoch, one minibatch."""
    with pytest.raises(StageError, match=r"became (nan|inf|-inf)"):
        run(tmp_path, **world.fields(total_episodes=4, num_ppo_epochs=1, learning_rate=1e30, eval_rows=3))
