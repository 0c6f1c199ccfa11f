"""How far two models are apart: the figures over the full softmax, whatever is in memory at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.training import divergence as module
from tasks.training.divergence import Divergence, Outputs, divergence

WIDTH, LENGTHS = 4, (40, 3, 57)
LARGE = 150_000
"""A vocabulary as today's models have: 27 positions of it are as many logits as may be there at a time."""


class CountingHead(nn.Linear):
    """Notes how many logits each call makes."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(WIDTH, vocabulary)
        self.made: list[int] = []

    def forward(self, states: Tensor) -> Tensor:
        found = super().forward(states)
        self.made.append(found.numel())
        return found


def two_models(vocabulary: int) -> tuple[Outputs, Outputs]:
    """The second one's states lie near the first one's."""
    torch.manual_seed(0)
    states = [torch.randn(length, WIDTH) for length in LENGTHS]
    near = [one + 0.2 * torch.randn_like(one) for one in states]
    first, second = CountingHead(vocabulary, seed=1), CountingHead(vocabulary, seed=1)
    with torch.no_grad():
        second.weight.mul_(1.05)
    return Outputs(states, first), Outputs(near, second)


def plainly(first: Outputs, second: Outputs) -> Divergence:
    """All logits at once."""
    a, b = (nn.Linear.forward(one.head, torch.cat(one.states)).double() for one in (first, second))
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    same = (a.argmax(-1) == b.argmax(-1)).float().mean()
    return Divergence(float((a - b).abs().max()), float((p.exp() * (p - q)).sum(-1).mean()), float(same))


def close(found: Divergence, wanted: Divergence) -> bool:
    return all(
        getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-5) for name in vars(wanted)
    )  # fmt: skip


@torch.no_grad()
def test_over_a_large_vocabulary_logits_stay_few_and_the_figures_the_same():
    first, second = two_models(LARGE)
    found = divergence(first, second)
    for head in (first.head, second.head):
        assert max(head.made) <= module.LOGITS < sum(head.made)
    assert sum(LENGTHS) * LARGE <= sum(second.head.made), "every position was compared"
    wanted = plainly(first, second)
    assert close(found, wanted) and 0 < wanted.agreement < 1 and wanted.kl > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("logits", [1, 300, 300 * 7, 300 * 64, 1 << 40])
def test_the_figures_do_not_hang_on_how_many_are_there_at_a_time(logits, monkeypatch):
    """1 is less than one position's: then it is one at a time."""
    monkeypatch.setattr(module, "LOGITS", logits)
    first, second = two_models(300)
    assert close(divergence(first, second), plainly(first, second))
    assert max(second.head.made) == max(300, min(logits // 300, sum(LENGTHS)) * 300)


@torch.no_grad()
def test_a_model_is_at_no_distance_from_itself():
    first, _ = two_models(300)
    assert divergence(first, first) == Divergence(0.0, 0.0, 1.0)


@torch.no_grad()
def test_states_of_small_vocabularies_go_in_chunks_too(monkeypatch: Any):
    monkeypatch.setattr(module, "CHUNK", 16)
    first, second = two_models(300)
    assert close(divergence(first, second), plainly(first, second)) and max(second.head.made) == 16 * 300
