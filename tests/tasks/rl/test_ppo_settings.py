"""Every setting of PPO acts on what it should act on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.ppo import PPO
from tests.tasks.rl.runs import (
    adapter_of,
    run,
    same,
)

pytestmark = pytest.mark.usefixtures("one_thread")


BASE: dict[str, Any] = {}
ADAPTIVE = {"kl_controller": "adaptive", "horizon": 40, "target_kl": 0.05, "total_episodes": 12}
MORE = {"total_episodes": 16}
SETTINGS: list[tuple[str, dict[str, Any], Any, str]] = [
    ("kl_coef", BASE, 1.0, "policy"),
    ("kl_controller", {**ADAPTIVE, "kl_controller": "fixed"}, "adaptive", "policy objective/kl_coef"),
    ("target_kl", ADAPTIVE, 5.0, "policy objective/kl_coef"),
    ("horizon", ADAPTIVE, 400, "policy objective/kl_coef"),
    ("cliprange", BASE, 0.02, "policy policy/clipfrac_avg"),
    ("cliprange_value", BASE, 0.01, "value val/clipfrac_avg"),
    ("vf_coef", BASE, 0.001, "value"),
    ("gamma", BASE, 0.5, "policy value"),
    ("lam", BASE, 0.1, "policy value"),
    ("num_ppo_epochs", BASE, 3, "policy value"),
    ("num_mini_batches", BASE, 2, "policy value"),
    ("batch_size", BASE, 8, "policy value"),
    ("total_episodes", BASE, 12, "policy value"),
    ("whiten_rewards", BASE, True, "policy value"),
    ("whiten_advantages", BASE, False, "policy"),
    ("stop_token", BASE, None, "policy completions/mean_length"),
    ("stop_token", BASE, "g", "policy completions/mean_length"),
    ("mask_truncated", BASE, True, "policy value"),
    ("missing_eos_penalty", BASE, 1.0, "policy value objective/scores"),
    ("cliprange_score", BASE, 0.1, "policy value objective/scores"),
    ("learning_rate", BASE, 1e-3, "policy"),
    ("value_learning_rate", BASE, 1e-3, "value"),
    ("schedule", BASE, "constant", "policy value"),
    ("schedule", BASE, "cosine", "policy value"),
    ("warmup_ratio", BASE, 0.5, "policy value train/learning_rate"),
    ("early_stop_kl", MORE, 1e-9, "policy policy/stopped_early"),
    ("max_kl", MORE, 1e-9, "policy"),
    ("ptx_coef", {"ptx_coef": 0.1, "ptx_data": "demonstrations"}, 1.0, "policy"),
    ("ptx_data", {"ptx_coef": 0.1, "ptx_data": "demonstrations"}, "others", "policy loss/ptx_avg"),
    ("top_layers", BASE, 1, "policy value"),
    ("max_new_tokens", BASE, 5, "policy completions/max_length"),
    ("temperature", BASE, 0.6, "policy policy/entropy"),
    ("max_grad_norm", BASE, 1e-3, "policy value"),
    ("optimizer", BASE, "adamw_8bit", "policy value"),
    ("reward_weight", BASE, 3.0, "policy value objective/scores"),
    ("programs", BASE, {"checks": 1.0}, "policy value scores/checks"),
    ("reward", {"programs": {"checks": 1.0}}, None, "policy value objective/scores"),
    ("seed", BASE, 1, "policy value"),
]
ELSEWHERE = {
    "policy": "every test here", "data": "every test here", "lora": "test_top_layers: a fresh adapter",
    "eval_rows": "below: touches figures alone",
    "sampling_batch_size": "test_sampler: changes nothing but the last bits",
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "before", "value", "changes"), SETTINGS, ids=[f"{name}={value}" for name, _, value, _ in SETTINGS]
)
def test_every_setting_acts(cached, with_data, field, before, value, changes):
    base, changed = cached(**with_data(before)), cached(**with_data({**before, field: value}))
    for what in changes.split():
        if what == "policy":
            assert not same(changed.adapter(), base.adapter())
        elif what == "value":
            ours, theirs = changed.value(), base.value()
            shared = [name for name in ours if name in theirs]
            assert any(not torch.equal(ours[name], theirs[name]) for name in shared)
        else:
            assert [p.get(what) for p in changed.points()] != [p.get(what) for p in base.points()]


def test_every_field_is_in_the_table_above():
    assert {name for name, *_ in SETTINGS} - {"seed"} | set(ELSEWHERE) == set(PPO.model_fields)


def test_held_out_prompts_are_scored_before_and_after_and_change_no_bit_of_training(world, cached, tmp_path):
    ran = run(tmp_path, **world.fields(eval_rows=4))
    assert same(ran.adapter(), cached().adapter()) and ran.points() == cached().points()
    figures = {"validation/score", "validation/kl", "validation/length"}
    assert set(ran.metrics) - set(cached().metrics) == figures | {f"{name}_before" for name in figures}
    assert ran.metrics["validation/kl_before"] == 0.0


def test_truncated_completions_that_are_masked_teach_nothing_at_all(world, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.rl.loop.stop_ids", lambda *given: [])
    ran = run(tmp_path, **world.fields(mask_truncated=True))
    assert ran.only("completions/clipped_ratio") == [1.0, 1.0]
    assert same(ran.adapter(), adapter_of(world.policy))


def test_the_kl_coefficient_follows_the_controller(cached):
    points = cached(**ADAPTIVE).points()
    wanted = 0.05
    for point in points:
        assert point["objective/kl_coef"] == pytest.approx(wanted, rel=1e-12)
        wanted *= 1 + min(max(point["objective/kl"] / 0.05 - 1, -0.2), 0.2) * 4 / 40
    assert len(points) == 3


def test_samples_are_kept_with_what_they_scored(cached):
    samples = [line["sample"] for line in cached().lines("samples")]
    assert len(samples) == 8
    assert set(samples[0]) == {"episodes", "prompt", "completion", "score", "kl", "truncated"}
    scores = [sample["score"] for sample in samples[:4]]
    assert sum(scores) / 4 == pytest.approx(cached().points()[0]["objective/scores"], abs=1e-6)
