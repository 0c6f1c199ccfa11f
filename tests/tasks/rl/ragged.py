"""Numbers for completions of unequal lengths, with garbage where nobody must look."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

GARBAGE = pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e9], ids=["nan", "inf", "1e9"])
LENGTHS = (5, 1, 3, 4)


def ragged(lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """The mask of completions of these lengths."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def drawn(seed: int, mask: Tensor, garbage: float = 0.0) -> Tensor:
    """Normal numbers, `garbage` outside the mask."""
    numbers = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    return numbers.masked_fill(~mask, garbage)


def one_row(*values: float) -> Tensor:
    return torch.tensor([values])


def all_of(*values: float) -> Tensor:
    """A mask for `one_row`."""
    return torch.ones(1, len(values), dtype=torch.bool)
