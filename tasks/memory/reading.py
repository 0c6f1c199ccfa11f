"""The memory of stages that train nothing: what a policy writes, and what it finds likely."""

from __future__ import annotations

from dataclasses import replace

from tasks.memory import logits
from tasks.memory.activations import passing
from tasks.memory.adapted import Adapted
from tasks.memory.online import Judge, Sampled, added, writing
from tasks.memory.parts import LIBRARIES, PLAIN, ROLLOUT, Kind, Memory, fullest
from tasks.memory.rows import SCORED_ROWS
from tasks.shape import ModelShape

COMPARED = 8 * 8 * (1 << 22)
"""Bytes of what is compared at a time: eight float64 arrays of tasks/training/divergence.py's LOGITS."""
ROW, TEXT = 2700, 11
"""Bytes that a data stage holds for each row, and for each byte of its file: measured on files of 1 to 32 MiB, rows of
300 bytes to 3 kB."""
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
    written = writing(shape, adapted, how, kind, merges=True)
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


def judge(shape: ModelShape, adapted: Adapted | None, kind: Kind, rows: int, tokens: int) -> Memory:
    """A pass over `rows` questions, of which two letters' logits are wanted each."""
    return Memory(
        weights=shape.weight_bytes, adapters=4 * adapted.parameters if adapted else 0, libraries=LIBRARIES[kind],
        activations=rows * tokens * passing(shape), logits=logits.own(shape, rows, reads=True),
    ).with_holes(kind, ROLLOUT)  # fmt: skip


def adopt(shape: ModelShape, parameters: int | None, kind: Kind) -> Memory:
    """Always in main memory: an adapter of so many `parameters` beside a model without weights; or a complete model,
    compared with the base tensor by tensor and written file by file."""
    if parameters is not None:
        return Memory(adapters=4 * parameters, libraries=PLAIN[kind] + LIBRARIES["cpu"] - PLAIN["cpu"])
    compared = (2 * 4 + 3) * _largest(shape)  # both tensors in float32, and masks of what is no number
    return Memory(weights=min(shape.weight_bytes, SHARD) + compared, libraries=PLAIN[kind])


def held_rows(count: int, text: int, kind: Kind) -> Memory:
    """In main memory: so many rows of a file of `text` bytes, read, rendered and as ids, all at once."""
    return Memory(rows=ROW * count + TEXT * text, libraries=PLAIN[kind])


def sample(shape: ModelShape, adapted: Adapted | None, kind: Kind, how: Sampled, judge: Judge | None) -> Memory:
    """Best of n: the policy writes while the reward model waits, then that one reads."""
    held = Memory(
        weights=shape.weight_bytes, adapters=4 * adapted.parameters if adapted else 0, libraries=LIBRARIES[kind],
        reward=0 if judge is None else judge.base_bytes + judge.adapter_bytes,
    )  # fmt: skip
    return added(held, writing(shape, adapted, how, kind, merges=True)).with_holes(kind)


def convert(shape: ModelShape, file: int, kind: Kind) -> Memory:
    """A base, always in main memory: its weights in float32 and, where it is kept in half of that, the copy. Of a GGUF
    of `file` bytes those pages, and the plain model that its weights go into."""
    whole = 4 * shape.parameters
    halved = whole // 2 if shape.bytes_each == 2 else 0
    return Memory(weights=(2 * whole + file) if file else whole + halved, libraries=PLAIN[kind])


def quantize(shape: ModelShape, kind: Kind) -> Memory:
    """The base, and beside it what its linear layers become in 4 bits; a GPU gets one layer after another, and the rest
    in float32."""
    copy = replace(shape, bytes_each=4, in_4_bits=True)
    if kind == "cuda":
        layer = max(inputs * outputs for _, inputs, outputs in shape.linears)
        return Memory(weights=copy.weight_bytes + 4 * layer)
    linear = copy.weight_bytes - 4 * shape.others
    return Memory(weights=shape.weight_bytes + linear, libraries=LIBRARIES[kind])


def merge(whole: ModelShape, adapted: Adapted, kind: Kind, positions: int, in_4_bits: int, reads: int) -> Memory:
    """Moments compared, each with the adapter:

    writing    a file of the merged weights, in main memory wherever it is compared; of a base in 4 bits, of `in_4_bits`
               bytes, what is read then and for the comparison, which is all there in the end: `reads` times
    fetching   the largest module, `positions` in flight, the first logits of both models; and the base in 4 bits
    comparing  eight arrays of a few million logits in place of the module
    """
    held = Memory(libraries=LIBRARIES[kind], adapters=4 * adapted.parameters)
    writing = replace(held, weights=min(whole.weight_bytes, SHARD) + reads * in_4_bits if kind == "cpu" else 0)
    running = replace(held, weights=in_4_bits, activations=positions * passing(whole))
    fetching = replace(running, weights=in_4_bits + 4 * _largest(whole), logits=COMPARED // 4)
    return fullest(writing, fetching, replace(running, logits=COMPARED))


def _largest(shape: ModelShape) -> int:
    """Elements of the largest tensor."""
    return max(shape.vocabulary * shape.hidden, *(inputs * outputs for _, inputs, outputs in shape.linears))
