"""Logits over the vocabulary for a few positions at a time: the same log-probabilities, and never more in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.training import logps as logps_module
from tasks.training.logps import label_logps
from tests.tasks.rl.runs import loop_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_log_probabilities_in_chunks_are_those_of_the_whole_softmax(temperature, count, frozen, monkeypatch):
    """Their gradients too, by the states and, where it trains, by the head; and grad mode changes no bit of a value."""
    monkeypatch.setattr(logps_module, "CHUNK", 4)
    draw = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 30, bias=False).requires_grad_(not frozen)
    states = torch.randn(count, 8, generator=draw).requires_grad_()
    labels, weights = torch.randint(30, (count,), generator=draw), torch.randn(count, generator=draw)
    found = label_logps(head, states, labels, temperature)
    wanted = (head(states) / temperature).log_softmax(-1)[torch.arange(count), labels]
    assert torch.allclose(found, wanted, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(label_logps(head, states, labels, temperature), found)
    if count:
        by = (states,) if frozen else (states, head.weight)
        ours, theirs = (torch.autograd.grad((x * weights).sum(), by) for x in (found, wanted))
        assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(ours, theirs, strict=True))


class LargestLogits(TorchDispatchMode):
    """Rows of the largest tensor over the vocabulary that any operation makes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            over = isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
            if over and tensor.shape[0] != 32:  # that would be the head's own weight, turned over
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return made


def test_logits_never_exist_for_more_positions_than_a_chunk(world, tmp_path, monkeypatch):
    monkeypatch.setattr(logps_module, "CHUNK", 5)
    loop = loop_of(tmp_path, **world.fields(total_episodes=4, num_ppo_epochs=1))
    mode = LargestLogits(14)
    score, learn = loop.scorer, loop.update

    def inside(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            with mode:
                return what(*given)

        return call

    loop.scorer, loop.update = inside(score), inside(learn)  # type: ignore[assignment]
    loop.run()
    assert mode.rows == 5
    assert loop.kept["points"][0]["completions/mean_length"] * 4 > 20, "there were many more positions than that"
