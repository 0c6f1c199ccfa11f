"""Which rows of an optimizer step are whose, and what each process's part of a loss weighs.

A step's rows, in the order of one process, are cut into passes of `count` times the micro-batch; in each pass every
process takes the next micro-batch. An epoch's short last batch leaves some with fewer rows, or none: these go through
one row again that weighs nothing, since all must take part in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.training.rows import epoch_order

Rows = list[int]


class Share:
    """The batch sampler of one process: the row numbers of each of its micro-batches."""

    def __init__(
        self, lengths: Sequence[int], batch_size: int, micro_batch: int, seed: int, *, rank: int, count: int
    ) -> None:
        self.lengths, self.batch_size, self.micro_batch, self.seed = lengths, batch_size, micro_batch, seed
        self.rank, self.count, self.epoch = rank, count, 0
        self.steps = -(-len(lengths) // batch_size)  # in an epoch
        self._order: tuple[int, Rows] = (-1, [])

    @property
    def batch_sampler(self) -> Share:
        """Where transformers looks for who is to be told the epoch: inside a wrapper of accelerate's."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(self.own(step)) for step in range(self.steps))

    def __iter__(self) -> Iterator[Rows]:
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            yield from (own or self.rows(step)[:1] for own in self.own(step))

    def rows(self, step: int) -> Rows:
        """All rows of an optimizer step, counted from 0 over all epochs."""
        epoch, batch = divmod(step, self.steps)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.lengths, self.batch_size, self.seed, epoch)
        return self._order[1][batch * self.batch_size :][: self.batch_size]

    def own(self, step: int) -> list[Rows]:
        """This process's rows in each pass of a step; an empty list where there is none left for it."""
        rows, size = self.rows(step), self.micro_batch
        starts = range(0, len(rows), size * self.count)
        return [rows[start + self.rank * size :][:size] for start in starts]

    def weights(self, step: int, counts: Sequence[int] | None = None) -> list[float]:
        """Of each pass of a step, this process's part of its rows, or of what `counts` counts of each row."""

        def total(rows: Rows) -> int:
            return len(rows) if counts is None else sum(counts[row] for row in rows)

        return [total(own) / max(1, total(self.rows(step))) for own in self.own(step)]
