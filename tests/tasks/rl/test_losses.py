"""PPO's two losses against numbers worked by hand, garbage in the padding, and their micro-batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tasks.rl.objective import policy_loss, ratio, value_loss
from tests.tasks.rl.ragged import GARBAGE, all_of, drawn, one_row, ragged

# The policy's loss


@pytest.mark.parametrize(
    ("change", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside: d(-r A)/d log r = -r A
        (1.5, 2.0, -2.4, 0.0),  # good, and already likelier by more than the clip: counts as 1.2
        (0.5, 2.0, -1.0, -1.0),  # good, but less likely: the whole way back counts
        (0.5, -2.0, 1.6, 0.0),  # bad, and already less likely by more than the clip: counts as 0.8
        (1.5, -2.0, 3.0, 3.0),  # bad, and likelier: not clipped
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_by_hand_on_both_sides_of_the_clip(change, advantage, loss, slope):
    logps = one_row(math.log(change) - 1.0).requires_grad_()
    found = policy_loss(logps, one_row(-1.0), one_row(advantage), all_of(1), cliprange=0.2, tokens=1)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert float(logps.grad) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_the_surrogate_is_a_sum_over_all_tokens_of_the_minibatch_by_their_number():
    logps, old = one_row(math.log(1.1), math.log(0.7), 0.0), one_row(0.0, 0.0, 0.0)
    loss = policy_loss(logps, old, one_row(1.0, 1.0, -3.0), all_of(1, 1, 1), cliprange=0.2, tokens=6)
    assert float(loss) == pytest.approx(-(1.1 + 0.7 - 3.0) / 6, rel=1e-6)


def test_at_ratio_1_the_gradient_is_that_of_reinforce():
    mask, advantages = ragged(), drawn(3, ragged())
    logps = drawn(1, mask).requires_grad_()
    policy_loss(logps, logps.detach().clone(), advantages, mask, cliprange=0.2, tokens=13).backward()
    assert torch.allclose(logps.grad, -advantages / 13, rtol=1e-6, atol=0)


def test_a_ratio_beyond_all_measure_is_cut_off_before_it_overflows():
    assert torch.isfinite(ratio(one_row(500.0, -500.0), one_row(0.0, 0.0), all_of(1, 1))).all()


# The value model's loss


@pytest.mark.parametrize(
    ("new", "target", "loss", "slope"),
    [
        (0.1, 1.0, 0.405, -0.9),  # within the clip: half of 0.9^2
        (0.5, 1.0, 0.32, 0.0),  # counts as 0.2, still 0.8 away; the plain error 0.5^2 is smaller
        (0.5, 0.0, 0.125, 0.5),  # moved away by 0.5: the plain error is the larger, and pulls
        (-0.5, 1.0, 1.125, -1.5),
        (-0.5, -1.0, 0.32, 0.0),
    ],
)
def test_the_value_loss_by_hand_on_both_sides_of_the_clip(new, target, loss, slope):
    values = one_row(new).requires_grad_()
    found = value_loss(values, one_row(0.0), one_row(target), all_of(1), cliprange=0.2, tokens=1)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert float(values.grad) == pytest.approx(slope, rel=1e-6, abs=1e-9)


# Padding and splitting, for both losses


def both_losses(
    mask: Tensor, garbage: float, rows: slice = slice(None)
) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """(losses, gradients with respect to new logps and new values) of some rows of the same minibatch."""
    first, second, old, old_values, advantages, returns = (drawn(seed, mask, garbage)[rows] for seed in range(6))
    logps, values, mask = first.requires_grad_(), second.requires_grad_(), mask[rows]
    losses = [
        policy_loss(logps, old, advantages, mask, cliprange=0.2, tokens=13),
        value_loss(values, old_values, returns, mask, cliprange=0.2, tokens=13),
    ]
    torch.autograd.backward(losses)
    return [loss.item() for loss in losses], [logps.grad, values.grad], [logps, values]


@GARBAGE
def test_garbage_in_the_padding_changes_neither_loss_nor_gradient(garbage):
    mask = ragged()
    clean, dirty = both_losses(mask, 0.0), both_losses(mask, garbage)
    assert clean[0] == dirty[0] and all(map(math.isfinite, clean[0]))
    for one, other in zip(clean[1], dirty[1], strict=True):
        assert torch.equal(one[mask], other[mask])


@GARBAGE
@pytest.mark.parametrize("which", [0, 1], ids=["policy", "value"])
def test_the_gradient_of_padding_is_exactly_0(which, garbage):
    mask = ragged()
    _, gradients, _ = both_losses(mask, garbage)
    assert torch.equal(gradients[which][~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)])
def test_micro_batches_add_up_to_their_minibatch(cuts):
    mask = ragged()
    whole, gradients, _ = both_losses(mask, 0.0)
    parts = [both_losses(mask, 0.0, slice(a, b)) for a, b in itertools.pairwise(cuts)]
    for which in (0, 1):
        assert sum(part[0][which] for part in parts) == pytest.approx(whole[which], abs=1e-6)
        assert torch.allclose(torch.cat([part[1][which] for part in parts]), gradients[which], atol=1e-7)
