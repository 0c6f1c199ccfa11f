"""A judge's answers, kept on the disk one by one: they cost money, or time on a large model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from artifacts.fingerprint import canonical
from artifacts.jsonl import read_jsonl
from artifacts.syncing import write_whole
from tasks.judging.pairs import Choice, Question


class Answer(NamedTuple):
    """What a judge said."""

    text: str
    choice: Choice | None
    """None where it is nonsense."""
    model: str | None = None
    """Who says that it answered, by an endpoint's word."""
    tokens: int | None = None
    """Of question and answer, by an endpoint's word."""


class Answers:
    """Those given so far, by row and order, and what became of questions that got none.

    An answer is on the disk before the next one is taken from the same thread. Failures are not: they are asked again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = read_jsonl(path) if path.exists() else []
        self.given = {(line.pop("row"), line.pop("swapped")): Answer(**line) for line in found}
        self.failed: dict[tuple[int, bool], str] = {}
        self._lock = Lock()
        self._rewrite()  # without a line that a crash cut off

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have no answer."""
        return [question for question in questions if question[:2] not in self.given]

    def keep(self, question: Question, answer: Answer) -> None:
        """Write an answer down; from any thread."""
        with self._lock, self.path.open("a") as file:
            file.write(_line(question[:2], answer))
            file.flush()
            os.fsync(file.fileno())
            self.given[question[:2]] = answer

    def fail(self, question: Question, why: str) -> None:
        """Note that a question got no answer; from any thread."""
        with self._lock:
            self.failed[question[:2]] = why

    def nonsense(self) -> dict[int, str]:
        """The rows of which an answer can't be read, with that answer."""
        with self._lock:
            return {row: answer.text for (row, _), answer in self.given.items() if answer.choice is None}

    def unanswered(self) -> dict[int, str]:
        """The rows of which a question got no answer, and why."""
        with self._lock:
            return {row: why for (row, _), why in self.failed.items()}

    def forget_nonsense(self) -> None:
        """Ask for these again next time: the endpoint may have been put right."""
        self.given = {asked: answer for asked, answer in self.given.items() if answer.choice is not None}
        self._rewrite()

    def _rewrite(self) -> None:
        write_whole(self.path, "".join(_line(asked, answer) for asked, answer in self.given.items()))


def _line(asked: tuple[int, bool], answer: Answer) -> str:
    return canonical({"row": asked[0], "swapped": asked[1], **answer._asdict()}) + "\n"
