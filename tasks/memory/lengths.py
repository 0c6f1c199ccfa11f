"""How long a data set's rows are: as they are once they are there, before that as long as settings let them be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from artifacts.jsonl import read_jsonl
from artifacts.kinds import Dataset

READABLE = 32 << 20
"""Bytes of a split that a plan reads to the last row; a longer one's lengths are taken from the report."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows that a stage trains on; each list has a number a row, or one number for all alike."""

    rows: int
    prompts: Sequence[int]
    completions: Sequence[Sequence[int]]
    """One for each row, of pairs two."""
    is_bound: bool = False
    """Whether these are the most that there can be, since the rows have not been made yet."""

    @classmethod
    def of(cls, data: Dataset, bounds: Mapping[str, Lengths]) -> Lengths | None:
        """From the split or the report if they are there, else the bound of that key; None where there is neither."""
        try:
            report = json.loads((data.path / "report.json").read_text())["train"]
            split = data.path / "train.jsonl"
            status = split.stat()
            if status.st_size <= READABLE:
                return _read(split, status.st_mtime_ns)
            return _told(report)
        except (OSError, ValueError, KeyError):
            return bounds.get(data.key)

    @classmethod
    def at_most(cls, rows: int, tokens: int, sides: int) -> Lengths:
        """So many rows of at most `tokens` tokens, most of them in the completion (of pairs, in both)."""
        return cls(rows, [1], [[tokens - 1] * sides], is_bound=True)

    @property
    def longest_prompt(self) -> int:
        """Of a bound the longest row, which may be nothing but prompt."""
        return self.longest_row if self.is_bound else max(self.prompts, default=0)

    @property
    def longest_row(self) -> int:
        """Prompt and the longer completion: what a batch is padded to."""
        return max((prompt + max(sides) for prompt, sides in self._each()), default=0)

    @property
    def longest_pair(self) -> int:
        """Prompt and both completions: a pair whose prompt is computed once."""
        return max((prompt + sum(sides) for prompt, sides in self._each()), default=0)

    def supervised(self, rows: int) -> int:
        """Tokens of the completions of those `rows` rows that have the most."""
        totals = sorted((sum(sides) for sides in self.completions), reverse=True)
        return sum(totals[:rows]) if len(totals) > 1 else rows * totals[0]

    def totals(self) -> list[int]:
        """Tokens of each row as they are counted: the prompt once for each completion. One number if all are alike."""
        return [prompt * len(sides) + sum(sides) for prompt, sides in self._each()]

    def _each(self) -> Iterator[tuple[int, Sequence[int]]]:
        return zip(self.prompts, self.completions, strict=True)


@lru_cache(maxsize=64)
def _read(split: Path, changed: int) -> Lengths:
    """`changed` makes another file under the same name another one to remember."""
    prompts, completions = [], []
    for row in read_jsonl(split):
        prompts.append(len(row["prompt_ids"]))
        completions.append([len(row[f"{name}_ids"]) for name in ("completion", "chosen", "rejected") if name in row])
    return Lengths(len(prompts), prompts, completions)


def _told(report: Mapping[str, Any]) -> Lengths:
    """All rows as long as the longest: the report has the longest prompt and completion, but not the longest row."""
    supervised = report["tokens"] * report["supervised_share"]
    sides = round(supervised / (report["completion_tokens"]["mean"] * report["rows"]))
    longest = int(report["completion_tokens"]["max"])
    return Lengths(
        int(report["rows"]), [int(report["prompt_tokens"]["max"])], [[longest] * max(1, sides)], is_bound=True
    )
