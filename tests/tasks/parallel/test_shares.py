"""Every row of a step is one process's, and what is weighed sums to the whole."""

from __future__ import annotations

import pytest

from tasks.parallel.shares import Share
from tasks.training.rows import epoch_order

LENGTHS = [3 + (7 * i) % 11 for i in range(29)]


def shares(count, micro_batch):
    return [Share(LENGTHS, 8, micro_batch, 0, rank=rank, count=count) for rank in range(count)]


@pytest.mark.parametrize(("count", "micro_batch"), [(1, 8), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_each_row_of_a_step_is_exactly_one_processs(count, micro_batch):
    everyone = shares(count, micro_batch)
    for step in range(9):
        epoch, batch = divmod(step, 4)
        wanted = epoch_order(LENGTHS, 8, 0, epoch)[8 * batch :][:8]
        assert sorted(row for share in everyone for own in share.own(step) for row in own) == sorted(wanted)


@pytest.mark.parametrize(("count", "micro_batch"), [(2, 4), (2, 1), (4, 2), (8, 1)])
def test_all_take_part_in_every_pass_and_none_is_too_large(count, micro_batch):
    everyone = shares(count, micro_batch)
    for epoch in (0, 1):
        passes = []
        for share in everyone:
            share.set_epoch(epoch)
            made = list(share)
            assert len(made) == len(share) and all(1 <= len(rows) <= micro_batch for rows in made)
            passes.append(len(made))
        assert len(set(passes)) == 1


@pytest.mark.parametrize("counts", [None, LENGTHS])
@pytest.mark.parametrize(("count", "micro_batch"), [(2, 4), (2, 1), (8, 1)])
def test_the_weights_of_all_passes_of_all_processes_sum_to_one(count, micro_batch, counts):
    everyone = shares(count, micro_batch)
    for step in range(4):
        assert sum(sum(share.weights(step, counts)) for share in everyone) == pytest.approx(1.0)
    short = [share.weights(3) for share in shares(2, 4)]
    assert short == [[4 / 5], [1 / 5]]
