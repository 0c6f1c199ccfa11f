"""Pairs with one prompt: compute the prompt once.

Trainers on pairs run [chosen; rejected] as 2B rows, so every prompt goes through the model twice. Here the trunk packs
row i and row B + i as `prompt, rest of the first, rest of the second` under a mask in which the two rests don't see
each other, with positions that both count on from the prompt. Every hidden state is what it was, up to rounding, and
with prompts longer than completions almost half of the work is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def share_prompts(trunk: Any) -> None:
    """Let `trunk` (token ids in, hidden states out) compute common beginnings once, whenever rows come as pairs."""
    whole = trunk.forward

    def forward(input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **more: Any) -> Any:
        paired = (
            input_ids is not None and attention_mask is not None and position_ids is None
            and attention_mask.dim() == 2 and len(input_ids) % 2 == 0 and more.get("past_key_values") is None
        )  # fmt: skip
        if not paired:
            return whole(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **more)
        layout = Layout(input_ids, attention_mask.bool())
        dtype = next(trunk.parameters()).dtype
        output = whole(
            input_ids=layout.ids, attention_mask=layout.additive_mask(dtype), position_ids=layout.positions, **more
        )
        output.last_hidden_state = layout.unpack(output.last_hidden_state)
        return output

    trunk.forward = forward


class Layout:
    """How 2B right-padded rows (2B, T) become B packed ones (B, L), and back."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        import torch

        first, second = ids.chunk(2)
        self.lengths = mask.sum(dim=1)
        ends, others = self.lengths.chunk(2)
        both = mask[: len(first)] & mask[len(first) :]
        common = ((first == second) & both).long().cumprod(dim=1).sum(dim=1)
        self.shared = torch.minimum(common, torch.minimum(ends, others) - 1)  # a row keeps a last token of its own
        width = int((ends + others - self.shared).max())
        place = torch.arange(width, device=ids.device)[None]
        self.in_second = place >= ends[:, None]
        source = torch.where(self.in_second, place - ends[:, None] + self.shared[:, None], place)
        self.real = source < torch.where(self.in_second, others[:, None], ends[:, None])
        self.positions = source.masked_fill(~self.real, 0)
        self.ids = torch.where(self.in_second, second.gather(1, self.positions), first.gather(1, self.positions))
        self._back = self._places(ids.shape[1], ends)

    def _places(self, width: int, ends: Tensor) -> Tensor:
        """For each token of the 2B rows, its place in the packed row: (2B, T)."""
        import torch

        place = torch.arange(width, device=ends.device)[None]
        again = torch.where(place < self.shared[:, None], place, place - self.shared[:, None] + ends[:, None])
        rows = torch.cat([place.expand(len(ends), -1), again])
        return rows.masked_fill(place >= self.lengths[:, None], 0)

    def allowed(self) -> Tensor:
        """Which place sees which: (B, L, L), True = sees."""
        import torch

        width = self.ids.shape[1]
        place = torch.arange(width, device=self.ids.device)
        causal = place[:, None] >= place[None]
        same = self.in_second[:, :, None] == self.in_second[:, None]
        prompt = (place[None] < self.shared[:, None])[:, None]
        own = torch.eye(width, dtype=torch.bool, device=self.ids.device)
        return (causal & (same | prompt) & self.real[:, None]) | own

    def additive_mask(self, dtype: Any) -> Tensor:
        """`allowed` as attention wants it: 0 or the lowest number, (B, 1, L, L)."""
        import torch

        lowest = torch.finfo(dtype).min
        return torch.zeros(self.allowed().shape, dtype=dtype, device=self.ids.device).masked_fill_(
            ~self.allowed(), lowest
        )[:, None]

    def unpack(self, states: Tensor) -> Tensor:
        """Packed states (B, L, H) as those of the 2B rows (2B, T, H)."""
        import torch

        twice = torch.cat([states, states])
        return twice.gather(1, self._back[:, :, None].expand(-1, -1, states.shape[-1]))
