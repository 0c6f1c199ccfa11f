"""The memory of stages that train nothing: what a policy writes, and what it finds likely."""

from __future__ import annotations

from dataclasses import replace

from tasks.memory import logits
from tasks.memory.activations import passing
from tasks.memory.adapted import Adapted
from tasks.memory.online import Judge, Sampled, added, writing
from tasks.memory.parts import LIBRARIES, ROLLOUT, Kind, Memory, fullest
from tasks.memory.rows import SCORED_ROWS
from tasks.shape import ModelShape

COMPARED = 8 * 8 * (1 << 22)
"""Bytes of what is compared at a time: eight float64 arrays of tasks/training/divergence.py's LOGITS."""
SHARD = 2 * 10**9
"""Bytes of a file of weights, at most (tasks/training/model_files.py, which imports torch)."""
SAMPLING_BATCH = 32
"""Completions that best of n writes at a time (tasks/rl/best.py, which imports torch)."""


def evaluate(
    shape: ModelShape, adapted: Adapted | None, kind: Kind, how: Sampled, longest_row: int,
    reference: int | None, judge: Judge | None,
) -> Memory:  # fmt: skip
    """Moments compared:

    writing    the policy, the cache, prompts in flight, a copy of the weights under an adapter
    reading    the policy (and `reference` bytes of another one), half as many rows in flight, logits of up
                   to 512 positions; on a CPU the allocator still holds the copy of the weights
    scoring    the reward model alone: the policy has gone
    """
    libraries = Memory(libraries=LIBRARIES[kind])
    policy = replace(libraries, weights=shape.weight_bytes, adapters=4 * adapted.parameters if adapted else 0)
    half = max(1, how.rows // 2)
    positions = half * max(longest_row, how.tokens)
    written = writing(shape, adapted, how, merges=True)
    reading = replace(
        policy, reference=reference or 0, activations=positions * passing(shape),
        logits=logits.own(shape, positions, reads=True), allocator=written.weights if kind == "cpu" else 0,
    )  # fmt: skip
    moments = [added(policy, written), reading]
    if judge is not None:
        moments.append(replace(
            libraries, reward=judge.base_bytes + judge.adapter_bytes,
            activations=min(SCORED_ROWS, how.rows) * how.tokens * passing(judge.shape),
        ))  # fmt: skip
    return fullest(*moments).with_holes(kind, ROLLOUT)


def sample(shape: ModelShape, adapted: Adapted | None, kind: Kind, how: Sampled, judge: Judge | None) -> Memory:
    """Best of n: the policy writes while the reward model waits, then that one reads."""
    held = Memory(
        weights=shape.weight_bytes, adapters=4 * adapted.parameters if adapted else 0, libraries=LIBRARIES[kind],
        reward=0 if judge is None else judge.base_bytes + judge.adapter_bytes,
    )  # fmt: skip
    return added(held, writing(shape, adapted, how, merges=True)).with_holes(kind)


def quantize(shape: ModelShape, kind: Kind) -> Memory:
    """The base, and beside it what its linear layers become in 4 bits."""
    copy = replace(shape, bytes_each=4, in_4_bits=True)
    linear = copy.weight_bytes - 4 * shape.others
    return Memory(weights=shape.weight_bytes + linear, libraries=LIBRARIES[kind])


def merge(whole: ModelShape, adapted: Adapted, kind: Kind, positions: int, in_4_bits: int, reads: int) -> Memory:
    """Moments compared, each with the adapter:

    writing    a file of the merged weights, in main memory wherever it is compared; of a base in 4 bits, of `in_4_bits`
               bytes, what is read then and for the comparison, which is all there in the end: `reads` times
    comparing  the largest module, `positions` in flight, a few million logits of both models, and the base in 4 bits
    """
    held = Memory(libraries=LIBRARIES[kind], adapters=4 * adapted.parameters)
    largest = max(whole.vocabulary * whole.hidden, *(inputs * outputs for _, inputs, outputs in whole.linears))
    writing = replace(held, weights=min(whole.weight_bytes, SHARD) + reads * in_4_bits if kind == "cpu" else 0)
    comparing = replace(
        held, weights=in_4_bits + 4 * largest, activations=positions * passing(whole), logits=COMPARED
    )  # fmt: skip
    return fullest(writing, comparing)
