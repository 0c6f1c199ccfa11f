"""Which rows of a rollout are whose, where several processes share it.

A row stays with one process for the whole rollout, since that one has the states under the layers that train. They are
dealt out in order of length, so that all have about as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tasks.parallel.processes import Processes
from tasks.rl.rollout import MicroBatch, by_length

if TYPE_CHECKING:
    from tasks.rl.sampler import Sampled


class Dealt:
    """The rows of this process, of the rollout that it was last told of."""

    def __init__(self, processes: Processes, micro_batch: int) -> None:
        self.processes, self.micro_batch = processes, micro_batch
        self.lengths: Sequence[int] = []
        self.rows: set[int] = set()

    def deal(self, lengths: Sequence[int]) -> None:
        """Rows of these lengths, prompt and completion together, are to be shared."""
        self.lengths, self.rows = lengths, set(self._hand(lengths))

    def own(self, parts: list[MicroBatch]) -> list[MicroBatch]:
        """What this process computes of a minibatch: its rows, in micro-batches of their own; all of it if alone."""
        if self.processes.count == 1:
            return parts
        rows = [row for part in parts for row in part if row in self.rows]
        return list(by_length(rows, self.lengths, self.micro_batch))

    def sampled(self, lengths: Sequence[int], sample: Callable[[list[int]], list[Sampled]]) -> list[Sampled]:
        """A completion for each prompt, of which these are the lengths; `sample` makes those of the places it gets."""
        own = sorted(self._hand(lengths))
        made = dict(zip(own, sample(own) if own else [], strict=True))
        everybodys: dict[int, Sampled] = {}
        for part in self.processes.gathered(made):
            everybodys |= part
        return [everybodys[place] for place in range(len(lengths))]

    def _hand(self, lengths: Sequence[int]) -> list[int]:
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        return order[self.processes.rank :: self.processes.count]
