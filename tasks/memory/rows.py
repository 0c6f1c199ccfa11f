"""The memory of training on rows: a function for each way of going through them.

Moments compared: the start of a micro-batch's backward pass, when all that a forward pass keeps is there; the
optimizer step, when all gradients are; an evaluation; and what a stage does at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tasks.memory import logits
from tasks.memory.activations import backing, checkpoints, copies, kept, passing
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.parts import ACCUMULATING, AGAIN, HALF, LIBRARIES, ONCE, Kind, Memory, fullest
from tasks.shape import ModelShape

EVALUATED = 8
"""Rows of an evaluation's pass, or as many as a micro-batch has."""
REFERENCE_ROWS, SCORED_ROWS = 16, 16
"""Rows of a pass of KTO's reference, and of a reward model at work."""


@dataclass(frozen=True)
class Case:
    """What the memory of training hangs on."""

    shape: ModelShape
    kind: Kind
    adapted: Adapted | None
    """None: all weights train, in float32."""
    moment_bytes: int
    micro: int
    batch: int
    lengths: Lengths
    checkpointing: bool
    evaluates: bool
    head: int = 0
    """Parameters of a scalar head."""

    @property
    def whole(self) -> bool:
        return self.adapted is None

    @property
    def model(self) -> ModelShape:
        """As it is in memory: all weights train in float32."""
        return replace(self.shape, bytes_each=4) if self.whole else self.shape

    @property
    def trained(self) -> int:
        return (self.shape.parameters if self.adapted is None else self.adapted.parameters) + self.head

    @property
    def trains_head(self) -> bool:
        return self.adapted is None or self.adapted.head

    @property
    def holes(self) -> float:
        """The allocator's share."""
        if self.checkpointing:
            return AGAIN
        if self.model.bytes_each == 2:
            return HALF
        return ACCUMULATING if self.micro < self.batch or self.model.in_4_bits else ONCE

    @property
    def largest(self) -> int:
        """Elements of the largest tensor that trains."""
        inside = max(inputs * outputs for _, inputs, outputs in self.shape.linears)
        if self.trains_head:
            return max(inside, self.shape.vocabulary * self.shape.hidden)
        return self.adapted.rank * max(max(one[1:]) for one in self.shape.linears) if self.adapted else inside

    @property
    def wide_moments(self) -> int:
        """Bytes by which embeddings that train exceed 8-bit moments: transformers keeps theirs in 32 bits."""
        embeddings = self.shape.vocabulary * self.shape.hidden if self.trains_head else 0
        return (8 - self.moment_bytes) * embeddings

    def still(self) -> Memory:
        """What is there all the time, once an optimizer step has been taken."""
        own = 0 if self.adapted is None else 4 * self.adapted.parameters
        return Memory(
            weights=self.model.weight_bytes, adapters=own + 4 * self.head,
            optimizer=self.moment_bytes * self.trained + self.wide_moments, libraries=LIBRARIES[self.kind],
        )  # fmt: skip

    def pass_kept(self, rows: int, width: int) -> int:
        """Of a forward and the start of a backward pass over so many rows of `width` tokens, padding included."""
        if self.checkpointing:
            return rows * width * (checkpoints(self.model, self.adapted) + backing(self.model))
        each = kept(self.model, self.adapted, width) + backing(self.model)
        return rows * width * each + copies(self.model, self.adapted)

    def one_layer(self, rows: int, width: int) -> int:
        """At the end of the backward pass: a layer's share of the activations, and its gradients in flight."""
        share = kept(self.model, self.adapted, width) // self.shape.layers
        return rows * width * (share + backing(self.model))


def trained(case: Case, width: int, head: int, *, reading: int = 0, read_head: int = 0) -> Memory:
    """The fullest moment of training with micro-batches of rows of `width` tokens and logits of `head` bytes.

        backward pass   still + activations + logits, and the gradients of the micro-batches before
        optimizer step  still + gradients + 7 bytes for each weight of the largest tensor, which is looked through for
                        what is no number (and, embeddings that are the head, gets its gradient in two parts)
        evaluation      still + a pass over `reading` tokens that keeps nothing, with logits of `read_head` bytes

    A model that trains whole has its head's gradient (counted with the logits) before any activation is gone.
    """
    still, gradients = case.still(), 4 * case.trained
    before = gradients if case.micro < case.batch else 0
    return fullest(
        replace(still, activations=case.pass_kept(case.micro, width), logits=head, gradients=before),
        replace(still, gradients=gradients, activations=max(case.one_layer(case.micro, width), 7 * case.largest)),
        replace(still, activations=reading * passing(case.model), logits=read_head),
    )


def sft(case: Case) -> Memory:
    """Rows of prompt and completion through TRL's head."""
    lengths, rows = case.lengths, max(case.micro, EVALUATED) if case.evaluates else 0
    supervised = lengths.supervised(case.micro)
    return trained(
        case, lengths.longest_row, logits.trl(case.model, supervised, case.kind, trains=case.trains_head),
        reading=rows * lengths.longest_row,
        read_head=logits.trl(case.model, lengths.supervised(rows), case.kind, reads=True) if rows else 0,
    )  # fmt: skip


def dpo(case: Case) -> Memory:
    """Pairs with the prompt computed once; chosen and rejected through TRL's head; the frozen start beside the policy.

    The reference's pass comes while the policy's activations wait, but is no more than the backward pass takes then.
    """
    reference = case.model.weight_bytes if case.adapted is None else 4 * case.adapted.parameters
    lengths, rows = case.lengths, max(case.micro, EVALUATED) if case.evaluates else 0
    supervised = lengths.supervised(case.micro)
    found = trained(
        case, lengths.longest_pair, logits.trl(case.model, supervised, case.kind, trains=case.trains_head),
        reading=rows * lengths.longest_pair,
        read_head=logits.trl(case.model, lengths.supervised(rows), case.kind, reads=True) if rows else 0,
    )  # fmt: skip
    return replace(found, reference=reference)


def pairs(case: Case) -> Memory:
    """ORPO and SimPO: pairs with the prompt computed once, logits by our own head, no reference."""
    lengths, rows = case.lengths, max(case.micro, EVALUATED) if case.evaluates else 0
    return trained(
        case, lengths.longest_pair, _own(case, lengths.supervised(case.micro)),
        reading=rows * lengths.longest_pair, read_head=_own(case, lengths.supervised(rows), reads=True) if rows else 0,
    )  # fmt: skip


def feedback(case: Case) -> Memory:
    """KTO: labelled rows by our own head; the reference's log-probabilities are taken from 16 rows at a time before."""
    lengths = case.lengths
    return trained(
        case, lengths.longest_row, _own(case, lengths.supervised(case.micro)),
        reading=REFERENCE_ROWS * lengths.longest_row, read_head=_own(case, logits.CHUNK, reads=True),
    )  # fmt: skip


def reward(case: Case) -> Memory:
    """Pairs with the prompt computed once, under a scalar head: no logits.

    At the end what was written is read again and scores the held-out rows, while the trained model is still there. On a
    CPU that finds room where the activations were, but for the base's weights, which are the file itself.
    """
    lengths, rows = case.lengths, max(case.micro, EVALUATED) if case.evaluates else 0
    again = case.shape.weight_bytes + (0 if case.adapted is None else 4 * case.adapted.parameters)
    trains = trained(case, lengths.longest_pair, 0, reading=rows * lengths.longest_pair)
    if case.kind == "cpu":
        return replace(trains, reward=case.shape.weight_bytes)
    scored = replace(case.still(), reward=again, activations=SCORED_ROWS * lengths.longest_row * passing(case.model))
    return fullest(trains, scored)


def _own(case: Case, positions: int, *, reads: bool = False) -> int:
    return logits.own(case.model, positions, trains=case.trains_head, reads=reads)
