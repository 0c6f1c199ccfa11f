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

    Logits exist for `CHUNK` positions at a time, in a backward pass too. A head that is frozen gives the gradient along
    with the value; through one that trains, the backward pass computes each chunk's logits again.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    frozen = isinstance(head, torch.nn.Linear) and not any(p.requires_grad for p in head.parameters())
    found = []
    for at in range(0, len(labels), CHUNK):
        part = head, states[at : at + CHUNK], labels[at : at + CHUNK], temperature
        if not torch.is_grad_enabled():
            found.append(_chosen(*part))
        elif frozen:
            found.append(_through_frozen_head(*part))
        else:
            found.append(checkpoint(_chosen, *part, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)


def _chunk(head: Any, states: Tensor, temperature: float) -> Tensor:
    """log p of every token, (N, V) in float32."""
    import torch

    logits = head(states).float()
    if temperature != 1.0:
        logits = logits / temperature
    return torch.log_softmax(logits, dim=-1)


def _chosen(head: Any, states: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log p of the labels, (N,)."""
    return _chunk(head, states, temperature).gather(-1, labels[:, None]).squeeze(-1)


def _through_frozen_head(head: Any, states: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The same, with its derivative taken at once: the logits need neither be kept nor computed again.

    d log p(y) / d h = (W_y - sum_v p(v) W_v) / temperature
    """
    import torch

    with torch.no_grad():
        logps = _chunk(head, states, temperature)
        chosen = logps.gather(-1, labels[:, None]).squeeze(-1)
        weight = head.weight
        mean = (logps.exp_().to(weight.dtype) @ weight).float()
        slope = (weight[labels].float() - mean) / temperature
    return chosen + _zero_with_slope(states, slope)


def _zero_with_slope(states: Tensor, slope: Tensor) -> Tensor:
    """Zeros (N,) whose derivative with respect to `states` (N, H) is `slope`."""
    return ((states - states.detach()).float() * slope).sum(dim=-1)
