from __future__ import annotations

import math
import typing

import pytest
import torch
from pydantic import ValidationError

from tasks.context import Execution
from tasks.dpo import LossType
from tasks.training.logps import padded, token_logps
from tasks.training.models import load_model
from tasks.training.rows import load_rows

SIDES = ("chosen", "rejected")


def test_the_loss_is_ln_2_at_the_first_step(dpo):
    first = next(point["metrics"] for point in dpo.points() if "train/loss" in point["metrics"])
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0


def test_after_training_chosen_is_preferred_more_than_by_the_reference(dpo):
    assert dpo.metrics["train/loss"] < math.log(2)
    assert dpo.metrics["rewards/margins"] > 0


def test_the_reported_rewards_are_beta_times_the_log_ratios_and_the_loss_follows(dpo, sft, pairs):
    """An oracle of our own: both models loaded afresh, equation 7 written out."""
    rows = load_rows(pairs.handle, "test")[:8]
    with torch.no_grad():
        chosen, rejected = (0.3 * (logps(dpo.handle, rows, side) - logps(sft.handle, rows, side)) for side in SIDES)
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert dpo.metrics["validation/rewards/chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert dpo.metrics["validation/rewards/rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)
    assert dpo.metrics["validation/loss"] == pytest.approx(float(loss), abs=1e-4)


def logps(handle, rows, side):
    batch = padded([row["prompt_ids"] for row in rows], [row[f"{side}_ids"] for row in rows], 0, "cpu")
    return token_logps(load_model(handle, "cpu"), batch).sum(dim=1)


def test_sft_weight_adds_the_chosen_completions_loss_a_token(kitchen, sft, pairs):
    plain = kitchen.make("dpo", policy=sft.handle, data=pairs.handle, max_steps=1, eval_rows=0)
    mixed = kitchen.make("dpo", policy=sft.handle, data=pairs.handle, max_steps=1, eval_rows=0, sft_weight=0.5)
    added = (mixed.metrics["train/loss"] - plain.metrics["train/loss"]) / 0.5
    assert 4.0 < added < 6.5  # an untrained model over 259 tokens: about ln 259 = 5.6


def test_its_tokens_count_alike_however_a_step_is_cut(kitchen, sft, pairs):
    """Of 8 pairs with completions of unequal length, in one pass or in four."""
    settings = {"policy": sft.handle, "data": pairs.handle, "max_steps": 3, "eval_rows": 0, "sft_weight": 1.0}
    whole = kitchen.make("dpo", **settings)
    cut = kitchen.make("dpo", Execution(threads=2, micro_batch=2), **settings)
    assert whole.handle.key != cut.handle.key and len(load_rows(pairs.handle, "train")) % 8 == 0
    for one, other in zip(whole.points(), cut.points(), strict=True):
        for name in ("train/loss", "train/grad_norm"):
            assert one["metrics"].get(name) == pytest.approx(other["metrics"].get(name), rel=1e-5)


def test_the_sft_adapter_is_untouched_and_only_one_adapter_comes_out(dpo, sft, kitchen):
    assert kitchen.store.damage("sft", sft.handle.key) is None
    assert sorted(path.name for path in dpo.handle.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapter_as_policy_takes_no_lora_settings(kitchen, sft, pairs):
    with pytest.raises(ValidationError, match="goes on training as it is"):
        kitchen.stage("dpo", policy=sft.handle, data=pairs.handle, lora={"rank": 4})


def test_a_checkpoint_trains_a_fresh_adapter_or_all_weights(kitchen, base, pairs):
    fresh = kitchen.make("dpo", policy=base.handle, data=pairs.handle, max_steps=2, lora={"rank": 4}, eval_rows=0)
    whole = kitchen.make("dpo", policy=base.handle, data=pairs.handle, max_steps=2, learning_rate=1e-4, eval_rows=0)
    for made in (fresh, whole):
        first = next(point["metrics"] for point in made.points() if "train/loss" in point["metrics"])
        assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert fresh.handle.kind == "adapter" and whole.handle.kind == "checkpoint"


START = {
    "sigmoid": math.log(2), "sigmoid_norm": math.log(2), "hinge": 1.0, "ipo": 1 / (2 * 0.4) ** 2,
    "robust": math.log(2), "exo_pair": math.log(0.5) - 0.5 * math.log(0.999 * 0.001), "nca_pair": 2 * math.log(2),
    "sppo_hard": 2 * (0.5 / 0.4) ** 2, "aot": math.log(2), "aot_unpaired": math.log(2), "apo_zero": 1.0,
    "apo_down": 1.0, "discopop": 0.5 * math.log(2) + 0.5,
}  # fmt: skip
"""Each loss with every log-ratio 0 and beta 0.4, from the equations of its paper."""


SMOOTHING = {"robust": 0.1, "exo_pair": 0.001}


def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return -torch.log1p(torch.exp(-x))


def equation(loss_type: str, sides: tuple[torch.Tensor, ...], lengths: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The loss of each pair from its paper, at beta 0.4.

    `sides` are log pi of chosen and rejected and log pi_ref of chosen and rejected, (B,) each; `lengths` their tokens.
    """
    chosen, rejected, ref_chosen, ref_rejected = sides
    a, b = chosen - ref_chosen, rejected - ref_rejected
    per_token = a / lengths[0] - b / lengths[1]
    x, right, eps = 0.4 * (a - b), torch.sigmoid(0.4 * (a - b)), SMOOTHING.get(loss_type, 0.0)
    tilt = torch.sigmoid(x / 0.05)
    across = (chosen - rejected).sort().values - (ref_chosen - ref_rejected).sort().values
    return {
        "sigmoid": lambda: -log_sigmoid(x),
        "sigmoid_norm": lambda: -log_sigmoid(0.4 * per_token),
        "hinge": lambda: (1 - x).clamp(min=0),
        "ipo": lambda: (per_token - 1 / (2 * 0.4)) ** 2,
        "robust": lambda: (eps * log_sigmoid(-x) - (1 - eps) * log_sigmoid(x)) / (1 - 2 * eps),
        "exo_pair": lambda: right * torch.log(right / (1 - eps)) + (1 - right) * torch.log((1 - right) / eps),
        "nca_pair": lambda: -log_sigmoid(0.4 * a) - (log_sigmoid(-0.4 * a) + log_sigmoid(-0.4 * b)) / 2,
        "sppo_hard": lambda: (a - 1 / 0.8) ** 2 + (b + 1 / 0.8) ** 2,
        "aot": lambda: -log_sigmoid(0.4 * across),
        "aot_unpaired": lambda: -log_sigmoid(0.4 * (a.sort().values - b.sort().values)),
        "apo_zero": lambda: 1 - torch.sigmoid(0.4 * a) + torch.sigmoid(0.4 * b),
        "apo_down": lambda: torch.sigmoid(0.4 * a) + 1 - right,
        "discopop": lambda: -(1 - tilt) * log_sigmoid(x) + tilt * torch.exp(-x),
    }[loss_type]()


@pytest.mark.parametrize("loss_type", typing.get_args(LossType))
def test_every_loss_starts_where_its_equation_says_moves_and_ends_where_it_says(kitchen, sft, pairs, loss_type):
    made = kitchen.make(
        "dpo", policy=sft.handle, data=pairs.handle, beta=0.4, loss_type=loss_type, learning_rate=2e-3, eval_rows=8,
        label_smoothing=SMOOTHING.get(loss_type, 0.0),
    )  # fmt: skip
    losses = [point["metrics"]["train/loss"] for point in made.points() if "train/loss" in point["metrics"]]
    assert losses[0] == pytest.approx(START[loss_type], rel=1e-5)
    # DiscoPOP's slope at 0 is 5 (1 - ln 2) - 3/4 > 0: its first steps lower the margin, as its paper shows.
    assert (made.metrics["rewards/margins"] > 0) == (loss_type != "discopop")
    rows = load_rows(pairs.handle, "test")[:8]
    with torch.no_grad():
        sides = tuple(logps(model, rows, side) for model in (made.handle, sft.handle) for side in SIDES)
    lengths = tuple(torch.tensor([len(row[f"{side}_ids"]) for row in rows]) for side in SIDES)
    assert (sides[0] - sides[2]).abs().max() > 0.1
    wanted = float(equation(loss_type, sides, lengths).mean())
    assert made.metrics["validation/loss"] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label_smoothing": 0.1}, "is for loss_type robust, exo_pair, aot, aot_unpaired only, got sigmoid"),
        ({"loss_type": "exo_pair"}, "exo_pair wants a label_smoothing above 0"),
        ({"loss_type": "bco_pair"}, "should be 'sigmoid'"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_settings_that_no_loss_reads_are_refused(kitchen, sft, pairs, fields, said):
    with pytest.raises(ValidationError, match=said):
        kitchen.stage("dpo", policy=sft.handle, data=pairs.handle, **fields)


def test_a_loss_that_sorts_a_whole_pass_has_the_micro_batch_in_its_key(kitchen, sft, pairs):
    execution = Execution(micro_batch=4)
    keyed = {
        loss_type: kitchen.stage("dpo", policy=sft.handle, data=pairs.handle, loss_type=loss_type).keyed_micro_batch(
            execution
        )
        for loss_type in ("sigmoid", "aot")
    }
    assert keyed == {"sigmoid": None, "aot": 4}
