"""Logits over the vocabulary V, which never exist for a whole batch: bytes of those that are there at a time.

What a completion's tokens N make of it depends on whose head computes them.
"""

from __future__ import annotations

from tasks.memory.parts import Kind
from tasks.shape import ModelShape

CHUNK = 512
"""Positions at a time of tasks/training/logps.py, which imports torch; a test holds that they are equal."""
TILE = (4096, 32_768)
"""Positions and tokens of the vocabulary at a time in TRL's head, whose buffer is that wide whatever V is."""


def own(shape: ModelShape, positions: int, *, trains: bool = False, reads: bool = False) -> int:
    """Of `label_logps`: min(N, 512) x V in float32, two arrays (logits and their logarithm of softmax).

    A head that trains has a third (the gradient) and its own gradient twice, V x H x 4 each; `reads` is without one.
    """
    arrays = 3 if trains and not reads else 2
    gradient = 2 * 4 * shape.vocabulary * shape.hidden if trains and not reads else 0
    return arrays * 4 * min(positions, CHUNK) * shape.vocabulary + gradient


def trl(shape: ModelShape, positions: int, kind: Kind, *, trains: bool = False, reads: bool = False) -> int:
    """Of TRL's fused head: tiles of min(N, 4096) x 32,768.

    On a GPU one tile in the states' precision, in which a kernel works. On a CPU torch does it in steps: three more in
    float32 in a forward pass, some eight in a backward pass. A head that trains has its gradient in float32,
    V x H x 4.
    """
    tile = min(positions, TILE[0]) * TILE[1]
    width = 4 if shape.in_4_bits else shape.bytes_each
    steps = 0 if kind == "cuda" else 3 * 4 if reads else 33
    gradient = 4 * shape.vocabulary * shape.hidden if trains and not reads else 0
    states = 0 if reads else 2 * 4 * positions * shape.hidden
    return tile * width + min(positions, TILE[0]) * min(TILE[1], shape.vocabulary) * steps + gradient + states


def drawn(shape: ModelShape, rows: int) -> int:
    """Of the next token of each row: logits and probabilities in float32, and their sums in float64: 32 bytes each."""
    return rows * shape.vocabulary * 32
