"""How far two models are apart on the same rows, with logits over the vocabulary for a few positions at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.training.logps import CHUNK, padded

if TYPE_CHECKING:
    from torch import Tensor


LOGITS = 1 << 22
"""How many to have at a time: some eight arrays of them, in float64."""


@dataclass(frozen=True)
class Outputs:
    """The last states of a model, (T, H) for each row, and the head that makes logits of them."""

    states: list[Tensor]
    head: Any


@dataclass(frozen=True)
class Divergence:
    """Of a second model from a first one."""

    max_logit: float
    """The largest difference in any logit."""
    kl: float
    """KL(first || second), nats a token."""
    agreement: float
    """The share of positions at which both find the same token likeliest."""


def outputs(trunk: Any, head: Any, rows: list[dict[str, Any]], pad: int, device: str) -> Outputs:
    """What a model makes of each row's prompt, all in one pass: its weights may have to be read for each."""
    prompts = [row["prompt_ids"] for row in rows]
    batch = padded(prompts, [[]] * len(prompts), pad, device)
    states = trunk(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    return Outputs([one[: len(prompt)] for one, prompt in zip(states, prompts, strict=True)], head)


def divergence(first: Outputs, second: Outputs) -> Divergence:
    """Over all positions of all rows."""
    import torch

    largest, kl, same, count = 0.0, 0.0, 0, 0
    pairs = torch.cat(first.states), torch.cat(second.states)
    step = max(1, min(CHUNK, LOGITS // first.head(pairs[0][:1]).shape[-1]))
    for at in range(0, len(pairs[0]), step):
        a, b = (one.head(states[at : at + step]).double() for one, states in zip((first, second), pairs, strict=True))
        largest = max(largest, float((a - b).abs().max()))
        p, q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
        kl += float((p.exp() * (p - q)).sum())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(a)
    return Divergence(largest, max(kl / count, 0.0), same / count)
