"""Sampling from the policy: a key-value cache, and every row from a random stream of its own.

A row's tokens follow from (seed, rollout, row) and the model alone, never from what else is in its batch. The masks
come from here: what was sampled is known here, and is never guessed from ids later.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.training.logps import trunk_of

if TYPE_CHECKING:
    from torch import Tensor

COMPACT_BELOW = 0.75
"""When fewer than this share of a batch's rows still write, the finished ones leave the cache."""


@dataclass
class Sampled:
    """One completion: ids up to and with the stop token, their log-probabilities as sampled, and if it was cut off."""

    ids: list[int]
    logps: list[float]
    truncated: bool


def row_draws(seed: int, rollout: int | str, rows: Sequence[int], count: int) -> Tensor:
    """`count` uniform numbers for each row, (rows, count) in float64, from a generator of its own."""
    import torch

    def one(row: int) -> Tensor:
        state = hashlib.sha256(f"{seed}/{rollout}/{row}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(state, "big") >> 1)
        return torch.rand(count, generator=generator, dtype=torch.float64)

    return torch.stack([one(row) for row in rows])


class Sampler:
    """Draws completions from the softmax at `temperature`, whole: no top-k, no top-p, no penalties."""

    def __init__(
        self, model: Any, *, stop_ids: Sequence[int], pad: int, temperature: float, max_new_tokens: int, batch_size: int
    ) -> None:
        self.trunk, self.head = trunk_of(model), model.get_output_embeddings()
        self.stop_ids, self.pad, self.temperature = list(stop_ids), pad, temperature
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters

    def __call__(
        self, prompts: Sequence[list[int]], draws: Tensor, report: Callable[[int], None] = lambda done: None
    ) -> list[Sampled]:
        """One completion a prompt, in their order; `draws` is (prompts, max_new_tokens), `report` gets rows done."""
        import torch

        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        found: list[Sampled] = [Sampled([], [], True) for _ in prompts]
        with torch.no_grad():
            for at in range(0, len(order), self.batch_size):
                places = order[at : at + self.batch_size]
                batch = self._batch([prompts[i] for i in places], draws[places])
                for place, sampled in zip(places, batch, strict=True):
                    found[place] = sampled
                report(at + len(places))
        return found

    def _batch(self, prompts: list[list[int]], draws: Tensor) -> list[Sampled]:
        import torch
        from transformers import DynamicCache

        device = self.head.weight.device
        width = max(map(len, prompts))
        padded = [[self.pad] * (width - len(prompt)) + prompt for prompt in prompts]
        ids = torch.tensor(padded, device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        stops = torch.tensor(self.stop_ids, device=device, dtype=torch.long)
        draws = draws.to(device)
        sampled = [Sampled([], [], True) for _ in prompts]
        live = torch.arange(len(prompts), device=device)  # the rows that the cache holds
        writing = torch.ones(len(prompts), dtype=torch.bool, device=device)
        cache = DynamicCache()
        for step in range(self.max_new_tokens):
            logits = self._logits(ids, mask, cache)
            chosen, logps = draw(logits, draws[live, step], self.temperature)
            ended = torch.isin(chosen, stops)
            for row, token, logp, on, end in zip(
                live.tolist(), chosen.tolist(), logps.tolist(), writing.tolist(), ended.tolist(), strict=True
            ):
                if on:
                    sampled[row].ids.append(token)
                    sampled[row].logps.append(logp)
                    sampled[row].truncated = not end
            writing &= ~ended
            if not writing.any():
                break
            if writing.float().mean() < COMPACT_BELOW:
                cache.batch_select_indices(writing.nonzero().squeeze(1))
                live, mask, chosen, writing = live[writing], mask[writing], chosen[writing], writing[writing]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return sampled

    def _logits(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """The logits after the last token of each row, (B, V) in float32."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        more = {"position_ids": positions} if self._takes_positions else {}
        states = self.trunk(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        logits: Tensor = self.head(states.last_hidden_state[:, -1]).float()
        return logits


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens (B,) by inverting the distribution function at `uniform` (B,), and their log-probabilities (B,)."""
    import torch

    logps = torch.log_softmax(logits / temperature, dim=-1)
    cumulative = logps.double().exp().cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
    chosen = chosen.clamp(max=logits.shape[-1] - 1)
    return chosen, logps.gather(-1, chosen[:, None]).squeeze(-1)
