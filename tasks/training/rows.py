"""The data stage's rows, as training reads them, and the order in which it does."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from artifacts.jsonl import read_jsonl
from artifacts.kinds import Dataset

T = TypeVar("T")
MEGA = 8
"""Batches that are sorted by length together: larger wastes less padding, smaller shuffles better."""


def load_rows(data: Dataset, split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """The rows of a split, with their token ids."""
    return read_jsonl(Path(data.path) / f"{split}.jsonl")


def distinct_prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with each prompt once (a preference set has one several times), without their completions."""
    first: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in rows:
        first.setdefault(tuple(row["prompt_ids"]), row)
    kept = ("row", "prompt", "prompt_ids", "check")
    return [{name: row[name] for name in kept if name in row} for row in first.values()]


def pair_ids(row: dict[str, Any]) -> dict[str, list[int]]:
    """What a trainer on pairs needs of a row."""
    return {name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def pair_length(row: dict[str, Any]) -> int:
    """Tokens in both completions, each with the prompt before it."""
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """A shuffle in which every batch holds rows of like length; depends on its arguments alone.

    So data order never hangs on a global random state, and is the same after a crash.
    """
    draw = random.Random(f"{seed}/{epoch}")
    indices = list(range(len(lengths)))
    draw.shuffle(indices)
    batches: list[list[int]] = []
    for start in range(0, len(indices), MEGA * batch_size):
        group = sorted(indices[start : start + MEGA * batch_size], key=lambda i: lengths[i])  # equals stay shuffled
        batches += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    draw.shuffle(whole)
    rest = [batch for batch in batches if len(batch) < batch_size]  # at most one, and then last
    return [index for batch in whole + rest for index in batch]


def seen(lengths: Sequence[int], batch_size: int, seed: int, steps: int) -> set[int]:
    """The rows that so many optimizer steps go through."""
    found: set[int] = set()
    epoch = 0
    while steps > 0 and len(found) < len(lengths):
        order = epoch_order(lengths, batch_size, seed, epoch)
        found |= set(order[: steps * batch_size])
        steps, epoch = steps - -(-len(order) // batch_size), epoch + 1
    return found


class EpochSampler:
    """Feeds `epoch_order` to a DataLoader; the trainer says which epoch it is."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.lengths, self.batch_size, self.seed, self.epoch))


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: str) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)


def take(rows: Sequence[T], start: int, count: int, seed: str) -> list[T]:
    """Places `start` to `start + count` of an endless row of passes over `rows`, each pass shuffled anew.

    Depends on its arguments alone, so a cursor is all there is to remember.
    """
    places = range(start, start + count)
    return [rows[_shuffled(len(rows), f"{seed}/{place // len(rows)}")[place % len(rows)]] for place in places]


def batches(rows: Sequence[T], lengths: Sequence[int], size: int) -> Iterator[list[tuple[int, T]]]:
    """(position, row) in batches of like length, the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield [(i, rows[i]) for i in order[start : start + size]]
