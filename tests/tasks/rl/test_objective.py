"""PPO's formulas against numbers worked by hand, brute force, and garbage where nobody must look."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tasks.rl.objective import (
    KLController,
    advantages_and_returns,
    explained_variance,
    k3,
    masked_mean,
    sequence_kl,
    token_rewards,
    whiten,
)
from tests.tasks.rl.ragged import GARBAGE, LENGTHS, all_of, drawn, one_row, ragged

# Rewards


def test_the_kl_penalty_is_paid_at_every_token_and_the_score_comes_at_the_last_real_one():
    logps, ref_logps = one_row(-1.0, -2.0, -3.0, 9.0), one_row(-1.5, -1.0, -3.0, 5.0)
    mask = torch.tensor([[True, True, True, False]])
    rewards = token_rewards(torch.tensor([2.0]), logps, ref_logps, mask, kl_coef=0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.1, 2.0, 0.0])


def test_a_score_lands_once_a_row_whatever_its_length():
    mask = ragged()
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), 0 * mask, 0 * mask, mask, kl_coef=0.5)
    assert rewards.nonzero().tolist() == [[0, 4], [1, 0], [2, 2], [3, 3]]
    assert rewards.sum(dim=1).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_rewards_of_a_completion_sum_to_its_score_less_its_kl():
    mask, scores = ragged(), torch.tensor([0.3, -1.0, 2.0, 0.0])
    logps, ref_logps = drawn(1, mask), drawn(2, mask)
    rewards = token_rewards(scores, logps, ref_logps, mask, kl_coef=0.2)
    wanted = scores - 0.2 * sequence_kl(logps, ref_logps, mask)
    assert torch.allclose(rewards.sum(dim=1), wanted, atol=1e-6)


@GARBAGE
def test_rewards_do_not_see_the_padding(garbage):
    mask, scores = ragged(), torch.ones(4)
    clean = token_rewards(scores, drawn(1, mask), drawn(2, mask), mask, kl_coef=0.2)
    dirty = token_rewards(scores, drawn(1, mask, garbage), drawn(2, mask, -garbage), mask, kl_coef=0.2)
    assert torch.equal(clean, dirty) and not dirty[~mask].any()


# Advantages


def by_brute_force(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, each row on its own, every sum from the start: O(T^2)."""
    found = torch.zeros(mask.shape, dtype=torch.float64)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        r, v = rewards[row, :length].double().tolist(), [*values[row, :length].double().tolist(), 0.0]
        for t in range(length):
            found[row, t] = sum((gamma * lam) ** (s - t) * (r[s] + gamma * v[s + 1] - v[s]) for s in range(t, length))
    return found


@GARBAGE
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0), (0.5, 0.0)])
def test_advantages_equal_the_sum_over_all_later_errors(gamma, lam, garbage):
    mask = ragged()
    rewards, values = drawn(1, mask, garbage), drawn(2, mask, -garbage)
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=gamma, lam=lam)
    wanted = by_brute_force(rewards, values, mask, gamma, lam)
    assert torch.allclose(advantages.double(), wanted, atol=1e-5)
    assert torch.allclose(returns[mask].double(), (wanted + values.double())[mask], atol=1e-5)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_lambda_1_is_what_was_seen_less_what_was_expected():
    mask = ragged()
    rewards, values = drawn(1, mask), drawn(2, mask)
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=0.9, lam=1.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            seen = sum(0.9 ** (s - t) * float(rewards[row, s]) for s in range(t, length))
            assert float(returns[row, t]) == pytest.approx(seen, abs=1e-5)
            assert float(advantages[row, t]) == pytest.approx(seen - float(values[row, t]), abs=1e-5)


def test_lambda_0_is_the_error_of_one_step():
    rewards, values = one_row(1.0, 2.0, 3.0), one_row(0.5, 0.25, 4.0)
    advantages, _ = advantages_and_returns(rewards, values, all_of(1, 1, 1), gamma=0.5, lam=0.0)
    assert advantages[0].tolist() == [1 + 0.125 - 0.5, 2 + 2 - 0.25, 3 - 4]


def test_the_last_tokens_advantage_is_score_less_value_undiscounted():
    """The score sits on the last token itself and not one place after it, where gamma and lambda would shrink it."""
    mask = ragged()
    values, scores = drawn(1, mask), torch.tensor([1.0, 2.0, 3.0, 4.0])
    rewards = token_rewards(scores, 0 * values, 0 * values, mask, kl_coef=0.05)
    advantages, _ = advantages_and_returns(rewards, values, mask, gamma=0.9, lam=0.5)
    for row, length in enumerate(LENGTHS):
        assert float(advantages[row, length - 1]) == pytest.approx(float(scores[row] - values[row, length - 1]))


# Whitening


def test_whitening_by_hand_divides_by_the_biased_deviation():
    values = one_row(1.0, 2.0, 3.0, 6.0, 77.0)  # mean 3, squares 4 + 1 + 0 + 9 = 14 over 4
    mask = torch.tensor([[True, True, True, True, False]])
    deviation = math.sqrt(14 / 4)
    wanted = [-2 / deviation, -1 / deviation, 0.0, 3 / deviation]
    assert whiten(values, mask)[0].tolist() == pytest.approx([*wanted, 0.0])
    kept = whiten(values, mask, shift_mean=False)[0].tolist()
    assert kept == pytest.approx([3 + number for number in wanted] + [0.0])


@GARBAGE
def test_whitened_numbers_have_mean_0_and_variance_1_over_the_mask_alone(garbage):
    mask = ragged()
    values = 5 + 3 * drawn(1, mask, garbage)
    whitened = whiten(values, mask)
    assert not whitened[~mask].any()
    assert float(whitened[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(whitened[mask].var(unbiased=False)) == pytest.approx(1, abs=1e-5)
    shifted = whiten(values, mask, shift_mean=False)
    assert float(shifted[mask].mean()) == pytest.approx(float(values[mask].mean()), abs=1e-5)


def test_whitening_equal_numbers_gives_zeros_and_no_nan():
    assert whiten(one_row(2.0, 2.0), all_of(1, 1)).tolist() == [[0.0, 0.0]]


# KL


def test_the_adaptive_controller_follows_its_hand_worked_path():
    controller = KLController(0.1, target=6.0, horizon=1000)
    path = []
    for kl in (6.0, 6.6, 12.0, 0.0, 5.7):
        controller.update(kl, 100)
        path.append(controller.kl_coef)
    factors = (1.0, 1 + 0.1 * 0.1, 1 + 0.2 * 0.1, 1 - 0.2 * 0.1, 1 - 0.05 * 0.1)
    wanted = 0.1
    for found, factor in zip(path, factors, strict=True):
        wanted *= factor
        assert found == pytest.approx(wanted, rel=1e-12)


def test_without_a_target_the_coefficient_stays():
    controller = KLController(0.1)
    controller.update(100.0, 512)
    assert controller.kl_coef == 0.1


def test_the_kl_of_a_completion_is_the_sum_of_its_log_ratios():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logps, ref_logps = (
        torch.tensor([[-1.0, -2.0, 7.0], [-3.0, 1.0, 1.0]]),
        torch.tensor([[-2.0, -2.5, 0.0], [-1.0, 0, 0]]),
    )
    assert sequence_kl(logps, ref_logps, mask).tolist() == [1.5, -2.0]


def test_k3_by_hand_is_0_where_nothing_changed_and_never_negative():
    logps, ref_logps = one_row(0.0, 1.0, -1.0), one_row(0.0, 0.0, 0.0)
    assert k3(logps, ref_logps, all_of(1, 1, 1))[0].tolist() == pytest.approx([0.0, math.exp(-1), math.e - 2])
    mask = ragged()
    for seed in range(20):
        assert (k3(3 * drawn(seed, mask, math.nan), drawn(seed + 50, mask, math.nan), mask) >= 0).all()


def test_k1_and_k3_both_average_to_the_divergence():
    """Over all actions of a distribution, exactly: E_p[k] = KL(p || q)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = float((p * (p / q).log()).sum())
    logps, ref_logps, mask = p.log()[None], q.log()[None], all_of(1, 1, 1)
    assert float((p * k3(logps, ref_logps, mask)[0]).sum()) == pytest.approx(exact, abs=1e-6)
    assert float((p * (logps - ref_logps)[0]).sum()) == pytest.approx(exact, abs=1e-6)


# Figures


def test_explained_variance_is_1_for_a_perfect_model_0_for_a_constant_and_below_for_worse():
    mask, returns = all_of(1, 1, 1, 1), one_row(1.0, 2.0, 3.0, 4.0)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(returns + 7, returns, mask) == 1.0  # a constant error explains all the variance
    assert explained_variance(0 * returns, returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(one_row(1.0, 2.0, 3.0, 0.0), returns, mask) == pytest.approx(1 - 3.0 / 1.25)


def test_explained_variance_sees_no_padding_and_is_0_when_there_is_nothing_to_explain():
    mask = ragged()
    clean = explained_variance(drawn(1, mask), drawn(2, mask), mask)
    assert explained_variance(drawn(1, mask, math.nan), drawn(2, mask, math.nan), mask) == clean
    assert explained_variance(one_row(1.0, 2.0), one_row(3.0, 3.0), all_of(1, 1)) == 0.0


@GARBAGE
def test_a_masked_mean_sees_no_padding(garbage):
    assert float(masked_mean(one_row(1.0, 3.0, garbage), torch.tensor([[True, True, False]]))) == 2.0
