"""Log-probabilities of given tokens, without ever holding batch x time x vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 512
"""Positions whose logits over the vocabulary exist at the same time."""


def padded(prompts: Sequence[list[int]], completions: Sequence[list[int]], pad: int, device: str) -> dict[str, Tensor]:
    """Prompt and completion ids in one right-padded batch.

    `input_ids`, `attention_mask` and `labels` are (B, T); a label is -100 wherever the token is not a completion's.
    """
    import torch

    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids, mask, labels = [], [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        room = width - len(prompt) - len(completion)
        ids.append(prompt + completion + [pad] * room)
        mask.append([1] * (width - room) + [0] * room)
        labels.append([-100] * len(prompt) + completion + [-100] * room)
    named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor(values, device=device) for name, values in named.items()}


def trunk_of(model: Any) -> Any:
    """The model without its head: token ids in, hidden states out; adapters stay in place."""
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    return causal.base_model


def hidden_states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The last layer's states, (B, T, H)."""
    return trunk_of(model)(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state


def token_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p(label) at each labelled position in float32, 0 elsewhere: (B, T - 1).

    The head is applied only where there is a label, `CHUNK` positions at a time.
    """
    import torch

    hidden, labels = hidden_states(model, batch)[:, :-1], batch["labels"][:, 1:]
    mask = labels != -100
    wanted, states = labels[mask], hidden[mask]
    head = model.get_output_embeddings()
    found = [
        torch.log_softmax(head(states[at : at + CHUNK]).float(), dim=-1).gather(-1, wanted[at : at + CHUNK, None])
        for at in range(0, len(wanted), CHUNK)
    ]
    logps = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    logps[mask] = torch.cat(found).squeeze(-1)
    return logps
