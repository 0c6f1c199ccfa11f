"""SimPO, ORPO and KTO: numbers worked by hand, where they start, what they report, and what changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from artifacts.errors import DataError
from tasks import kto, orpo, simpo
from tasks.context import Execution
from tasks.stage import derive_seed
from tasks.training.feedback_trainer import with_others
from tasks.training.rows import epoch_order, load_rows, seen
from tests.tasks.training.test_dpo import logps


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Numbers worked by hand


def test_simpo_by_hand():
    """beta 2, gamma 0.5: 2 (-1 - -1.5) - 0.5 = 0.5, and log(1 + exp(-0.5)) = 0.474077."""
    assert float(simpo.loss(tensor(-1.0), tensor(-1.5), beta=2.0, gamma=0.5)) == pytest.approx(0.4740770, abs=1e-6)
    assert float(simpo.loss(tensor(-1.0), tensor(-1.0), beta=2.0, gamma=1.0)) == pytest.approx(math.log(1 + math.e))


def test_orpo_by_hand():
    """p = 1/2 and 1/4 have odds 1 and 1/3: -log(1/2) + 0.1 log(1 + 1/3) = 0.693147 + 0.028768."""
    found = orpo.loss(tensor(math.log(0.5)), tensor(math.log(0.25)), beta=0.1)
    assert float(found) == pytest.approx(0.6931472 + 0.1 * 0.2876821, abs=1e-6)
    alike = orpo.loss(tensor(-3.0), tensor(-3.0), beta=0.5)
    assert float(alike) == pytest.approx(3.0 + 0.5 * math.log(2))


def test_log_odds_stay_finite_with_their_gradient_where_p_rounds_to_1():
    sure = torch.tensor([0.0, -1e-9, -1e-3, -40.0], requires_grad=True)
    odds = orpo.log_odds(sure)
    odds.sum().backward()
    assert odds.isfinite().all() and sure.grad.isfinite().all()
    assert float(odds[3].detach()) == pytest.approx(-40.0, abs=1e-6)
    assert float(odds[2].detach()) == pytest.approx(math.log(math.exp(-1e-3) / (1 - math.exp(-1e-3))), rel=1e-4)


def test_kto_by_hand():
    """beta 0.5, z0 1: sigmoid(0.5 (3 - 1)) = 0.731059 for the liked one, sigmoid(0.5 (1 - -1)) for the other."""
    ratios, liked = tensor(3.0, -1.0), torch.tensor([True, False])
    found = kto.loss(ratios, liked, tensor(1.0), beta=0.5, desirable_weight=1.0, undesirable_weight=2.0)
    assert found.tolist() == pytest.approx([0.2689414, 2 * 0.2689414], abs=1e-6)


# Where training starts, and what it reports


def first_point(made):
    return next(point["metrics"] for point in made.points() if "train/loss" in point["metrics"])


def mean_logps(handle, rows, side):
    return logps(handle, rows, side) / torch.tensor([len(row[f"{side}_ids"]) for row in rows])


@pytest.mark.parametrize("uses", ["simpo", "orpo"])
def test_the_first_loss_is_the_equation_on_the_rows_as_they_are(uses, kitchen, base, sft, pairs):
    """All rows in the one step there is; SimPO starts from the SFT, ORPO from a base that saw none."""
    rows, start = load_rows(pairs.handle, "train"), sft if uses == "simpo" else base
    made = kitchen.make(
        uses, policy=start.handle, data=pairs.handle, lora=None if uses == "simpo" else {"rank": 4}, max_steps=1,
        batch_size=len(rows), eval_rows=0,
    )  # fmt: skip
    with torch.no_grad():
        chosen, rejected = (mean_logps(start.handle, rows, side) for side in ("chosen", "rejected"))
    losses = {
        "simpo": simpo.loss(chosen, rejected, beta=2.0, gamma=1.0),
        "orpo": orpo.loss(chosen, rejected, beta=0.1),
    }
    assert first_point(made)["train/loss"] == pytest.approx(float(losses[uses].mean()), abs=1e-4)


def test_kto_takes_no_reference_point_below_0(kitchen, sft, feedback, monkeypatch):
    """z0 stands for a KL: where the policy finds other completions less likely than the reference does, it is 0."""
    seen = []

    def loss(ratios, desirable, z0, **settings):
        seen.append((float(ratios.mean()), float(z0)))
        return ratios + 1.0  # whose descent makes every completion less likely

    monkeypatch.setattr(kto, "loss", loss)
    kitchen.make(
        "kto", policy=sft.handle, data=feedback.handle, max_steps=6, learning_rate=1e-2, beta=0.31, eval_rows=0
    )
    assert seen[-1][0] < -0.5
    assert [z0 for ratio, z0 in seen if ratio < -0.5] == [0.0] * sum(ratio < -0.5 for ratio, _ in seen)


def test_kto_weighs_both_labels_in_training_and_lets_no_gradient_through_z0(kitchen, sft, feedback, monkeypatch):
    """At the first step every row's loss is half its label's weight."""
    rows, real, seen_z0 = load_rows(feedback.handle, "train"), kto.loss, []

    def loss(ratios, desirable, z0, **settings):
        seen_z0.append(ratios.requires_grad and not z0.requires_grad)
        return real(ratios, desirable, z0, **settings)

    monkeypatch.setattr(kto, "loss", loss)
    made = kitchen.make(
        "kto", policy=sft.handle, data=feedback.handle, desirable_weight=3.0, undesirable_weight=0.5, max_steps=1,
        batch_size=len(rows), eval_rows=0,
    )  # fmt: skip
    liked = sum(row["label"] for row in rows)
    wanted = (3.0 * liked + 0.5 * (len(rows) - liked)) / len(rows) / 2
    assert first_point(made)["train/loss"] == pytest.approx(wanted, abs=1e-5)
    assert seen_z0 and all(seen_z0)


def test_kto_wants_more_than_one_row_a_step(kitchen, sft, feedback):
    with pytest.raises(ValidationError, match=r"batch_size\n.*greater than or equal to 2"):
        kitchen.stage("kto", policy=sft.handle, data=feedback.handle, batch_size=1)


def test_simpo_reports_beta_times_the_mean_log_probabilities_and_its_loss_follows(kitchen, sft, pairs):
    made = kitchen.make(
        "simpo", policy=sft.handle, data=pairs.handle, beta=2.5, gamma=0.7, learning_rate=4e-3, epochs=5, eval_rows=8
    )
    rows = load_rows(pairs.handle, "test")[:8]
    with torch.no_grad():
        chosen, rejected = (mean_logps(made.handle, rows, side) for side in ("chosen", "rejected"))
    wanted = simpo.loss(chosen, rejected, beta=2.5, gamma=0.7).mean()
    assert made.metrics["validation/loss"] == pytest.approx(float(wanted), abs=1e-4)
    assert made.metrics["validation/rewards/chosen"] == pytest.approx(2.5 * float(chosen.mean()), abs=1e-4)
    assert made.metrics["validation/rewards/margins"] == pytest.approx(
        2.5 * float((chosen - rejected).mean()), abs=1e-4
    )
    assert made.metrics["train/loss"] < math.log(1 + math.exp(0.7)) < first_point(made)["train/loss"] + 0.1


def test_orpo_trains_a_base_that_saw_no_sft(kitchen, base, pairs):
    made = kitchen.make(
        "orpo", policy=base.handle, data=pairs.handle, lora={"rank": 4}, learning_rate=2e-3, eval_rows=8
    )
    rows = load_rows(pairs.handle, "test")[:8]
    with torch.no_grad():
        chosen, rejected = (mean_logps(made.handle, rows, side) for side in ("chosen", "rejected"))
    assert made.metrics["validation/loss"] == pytest.approx(
        float(orpo.loss(chosen, rejected, beta=0.1).mean()), abs=1e-4
    )
    # An untrained model over 259 tokens: ln 259 = 5.56, and 0.1 ln 2.
    assert first_point(made)["train/loss"] == pytest.approx(5.6 + 0.07, abs=0.4)
    assert made.handle.kind == "adapter"


def test_kto_starts_at_one_half_with_no_reward_and_tells_the_liked_from_the_others(kitchen, sft, feedback):
    made = kitchen.make("kto", policy=sft.handle, data=feedback.handle, learning_rate=2e-3, beta=0.3, epochs=2)
    first = first_point(made)
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4) and first["rewards/z0"] == pytest.approx(0, abs=1e-4)
    assert made.metrics["rewards/margins"] > 0.05 and made.metrics["train/loss"] < 0.5


def test_kto_reports_beta_times_the_log_ratios_and_its_loss_follows(kitchen, sft, feedback):
    """Policy and reference loaded afresh; z0 over all held-out rows, each with its other completion."""
    made = kitchen.make("kto", policy=sft.handle, data=feedback.handle, learning_rate=4e-3, beta=0.3, eval_rows=9)
    rows = with_others(load_rows(feedback.handle, "test")[:9], derive_seed(0, "kto"))
    with torch.no_grad():
        ratios, others = (
            logps(made.handle, rows, side) - logps(sft.handle, rows, side) for side in ("completion", "other")
        )
    liked, z0 = torch.tensor([row["label"] for row in rows]), others.mean().clamp(min=0)
    wanted = kto.loss(ratios, liked, z0, beta=0.3, desirable_weight=1.0, undesirable_weight=1.0).mean()
    assert made.metrics["validation/loss"] == pytest.approx(float(wanted), abs=1e-4)
    assert made.metrics["validation/rewards/chosen"] == pytest.approx(0.3 * float(ratios[liked].mean()), abs=1e-4)
    assert made.metrics["validation/rewards/rejected"] == pytest.approx(0.3 * float(ratios[~liked].mean()), abs=1e-4)


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 50])
def test_the_rows_that_are_seen_are_those_that_the_steps_go_through(steps):
    lengths = [i % 5 + 3 for i in range(14)]
    visited: list[list[int]] = []
    for epoch in range(20):  # 14 rows in batches of 4: 4 steps each
        order = epoch_order(lengths, 4, 1, epoch)
        visited += [order[at : at + 4] for at in range(0, 14, 4)]
    assert seen(lengths, 4, 1, steps) == {i for batch in visited[:steps] for i in batch}


def test_ktos_other_completions_are_each_row_once_never_its_own():
    rows = [{"completion_ids": [i]} for i in range(9)]
    others = [row["other_ids"][0] for row in with_others(rows, seed=1)]
    assert sorted(others) == list(range(9)) and all(other != i for i, other in enumerate(others))
    assert others == [row["other_ids"][0] for row in with_others(rows, seed=1)]


@pytest.mark.parametrize("uses", ["simpo", "orpo", "kto"])
def test_the_micro_batch_changes_nothing_but_last_bits(uses, kitchen, sft, pairs, feedback):
    """30 rows in batches of 8: the last one of an epoch is short, and its micro-batches are unequal."""
    data = feedback if uses == "kto" else pairs
    fields = {"policy": sft.handle, "data": data.handle, "learning_rate": 1e-3, "batch_size": 6, "eval_rows": 5}
    whole, parts = (kitchen.make(uses, Execution(threads=1, micro_batch=size), **fields).metrics for size in (6, 2))
    for name in ("train/loss", "train/grad_norm", "validation/loss", "rewards/margins", "logps/chosen"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("uses", ["simpo", "orpo", "kto"])
def test_the_loss_that_training_calls_is_the_one_in_the_stages_file(uses, kitchen, sft, pairs, feedback, monkeypatch):
    module = {"simpo": simpo, "orpo": orpo, "kto": kto}[uses]
    real = module.loss
    monkeypatch.setattr(module, "loss", lambda *args, **kwargs: 3 * real(*args, **kwargs))
    data = feedback if uses == "kto" else pairs
    fields = {"policy": sft.handle, "data": data.handle, "max_steps": 1, "eval_rows": 0}
    tripled = kitchen.make(uses, Execution(threads=1, save_interval=9), **fields)
    monkeypatch.undo()
    plain = kitchen.make(uses, **fields)
    assert tripled.metrics["train/loss"] == pytest.approx(3 * plain.metrics["train/loss"], rel=1e-5)


@pytest.mark.parametrize(("label", "said"), [("true", "desirable"), ("false", "undesirable")])
def test_kto_on_one_label_only_is_refused_before_it_trains(kitchen, sft, base, tmp_path, label, said):
    rows = tmp_path / "alike.jsonl"
    rows.write_text("".join(f'{{"prompt": "Say {i}.", "completion": "{i}", "label": {label}}}\n' for i in range(20)))
    alike = kitchen.make("data", base=base.handle, form="feedback", source=str(rows))
    with pytest.raises(DataError, match=f"wanted rows of both labels, got 18 {said} ones; add rows of the other"):
        kitchen.make("kto", policy=sft.handle, data=alike.handle)


def test_kto_says_which_weight_would_balance_unequal_labels(kitchen, sft, base, tmp_path, capfd):
    rows = tmp_path / "mostly.jsonl"
    labels = ["true"] * 18 + ["false"] * 6
    rows.write_text(
        "".join(f'{{"prompt": "Say {i}.", "completion": "{i}", "label": {label}}}\n' for i, label in enumerate(labels))
    )
    data = kitchen.make("data", base=base.handle, form="feedback", source=str(rows), test_size=0)
    kitchen.make("kto", policy=sft.handle, data=data.handle, max_steps=1, eval_rows=0)
    said = capfd.readouterr().out
    assert "18 desirable and 6 undesirable rows; by weight 3.00 to 1" in said
    assert "desirable_weight: 0.333 would give 1" in said
