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
    """log p(label) at each labelled position in float32, 0 elsewhere: (B, T - 1)."""
    import torch

    hidden, labels = hidden_states(model, batch)[:, :-1], batch["labels"][:, 1:]
    mask = labels != -100
    wanted, states = labels[mask], hidden[mask]
    found = label_logps(model.get_output_embeddings(), states, wanted)
    logps = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    logps[mask] = found
    return logps


def label_logps(head: Any, states: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(label) in float32, (N,), from the states before the labels, (N, H).

    Logits exist for `CHUNK` positions at a time; a backward pass computes each chunk's again instead of keeping them.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(states: Tensor, labels: Tensor) -> Tensor:
        logits = head(states).float()
        if temperature != 1.0:
            logits = logits / temperature
        return torch.log_softmax(logits, dim=-1).gather(-1, labels[:, None]).squeeze(-1)

    found = []
    for at in range(0, len(labels), CHUNK):
        part = states[at : at + CHUNK], labels[at : at + CHUNK]
        keeps = torch.is_grad_enabled()
        found.append(checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) if keeps else chunk(*part))
    return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)
