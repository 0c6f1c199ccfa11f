"""Two policies' completions of the same prompts, and the two questions that a judge is asked about each pair."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from artifacts.errors import DataError
from artifacts.jsonl import read_jsonl

Choice = Literal["A", "B", "tie"]
PLACES = ("{prompt}", "{first}", "{second}")
QUESTION = """\
Two assistants were given the same instruction. Which of their answers is better? It should do what the instruction \
asks for, in content and in form, and be correct and clear. Neither length nor the order of the answers counts.

[Instruction]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

[End of the answers]

Write A if answer A is better, B if answer B is better, or tie if neither is. Write only that, on a line of its own."""
"""After Zheng et al. 2023 (arXiv:2306.05685), figure 5, without the request to explain."""


class Question(NamedTuple):
    """What a judge is asked about a pair."""

    row: int
    swapped: bool
    """Whether the other policy's completion stands first, as answer A."""
    text: str


@dataclass(frozen=True)
class Pair:
    """A prompt and what two policies wrote, each as its report has it."""

    row: int
    prompt: str
    mine: dict[str, Any]
    other: dict[str, Any]

    @property
    def identical(self) -> bool:
        """Whether there is nothing to ask."""
        return bool(self.mine["completion"] == self.other["completion"])

    def questions(self, template: str) -> tuple[Question, Question]:
        """The pair in both orders; neither prompt nor completions are looked at for more places to fill in."""
        mine, other = self.mine["completion"], self.other["completion"]
        return (
            Question(self.row, False, _filled(template, self.prompt, mine, other)),
            Question(self.row, True, _filled(template, self.prompt, other, mine)),
        )


def _filled(template: str, *texts: str) -> str:
    values = dict(zip(PLACES, texts, strict=True))
    return re.sub("|".join(map(re.escape, PLACES)), lambda found: values[found[0]], template)


def paired(mine: Path, other: Path) -> tuple[list[Pair], int]:
    """The prompts that both reports have, in the order of the first, and how many only one of them has.

    A prompt is known by its row and its text; one that a report has twice counts once. Raises DataError, with what
    differs, where they share none.
    """
    ours, theirs = _by_prompt(mine), _by_prompt(other)
    pairs = [Pair(*prompt, result, theirs[prompt]) for prompt, result in ours.items() if prompt in theirs]
    if not pairs:
        raise DataError(f"report and against share no prompt: {_difference(list(ours), list(theirs))}")
    return pairs, len(ours.keys() ^ theirs.keys())


def _by_prompt(report: Path) -> dict[tuple[int, str], dict[str, Any]]:
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for result in read_jsonl(report / "completions.jsonl"):
        found.setdefault((result["row"], result["prompt"]), result)
    return found


def _difference(ours: list[tuple[int, str]], theirs: list[tuple[int, str]]) -> str:
    """Where they first differ."""
    others = dict(theirs)
    for row, prompt in ours:
        if row in others:
            return (
                f"row {row} is {prompt[:60]!r} in one and {others[row][:60]!r} in the other; evaluate both on one data"
            )
    return (
        f"one has the rows {ours[0][0]} to {ours[-1][0]}, the other {theirs[0][0]} to {theirs[-1][0]}; "
        "evaluate both on one data"
    )


def choice_in(text: str) -> Choice | None:
    """The one of A, B and tie that stands on a line of its own; None where none does, or several do."""
    lines = {line.strip() for line in text.splitlines()}
    choices: list[Choice] = [choice for choice in ("A", "B", "tie") if choice in lines]
    return choices[0] if len(choices) == 1 else None
