"""What was said while a run went on: `log.txt` in its folder, a line for each `<time> <stage>: <text>`.

A stage's own output lies beside its result too: there it is what all attempts said, of whichever run. Here it is one
run's, all its stages in the order in which they spoke. It is no part of any output, and never costs a run anything: on
a full disk, say, lines are lacking.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

TIME, TIME_LENGTH = "%Y-%m-%d %H:%M:%S", 19
PROGRESS_S = 30.0
"""A stage's progress is written down so often, and when it is done."""


class RunLog:
    """Takes lines from any thread; keeps what comes before the run has a folder, until it has one."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._early: list[str] = []
        self._progress: dict[str, float] = {}

    def begin(self, path: Path) -> None:
        """From now on, and what was said until now, to this file."""
        self._path = path
        self._write("".join(self._early))
        self._early = []

    def say(self, stage: str, text: str) -> None:
        """A line, or several."""
        now = time.strftime(TIME)
        lines = "".join(f"{now} {stage}: {line}\n" for line in text.splitlines())
        if self._path is None:
            self._early.append(lines)
        else:
            self._write(lines)

    def progress(self, stage: str, done: int, total: int, text: str) -> bool:
        """How far a stage is, if that was not said a moment ago; says whether it was worth a line."""
        now = time.monotonic()
        if done < total and now - self._progress.get(stage, -PROGRESS_S) < PROGRESS_S:
            return False
        self._progress[stage] = now
        self.say(stage, text)
        return True

    def _write(self, text: str) -> None:
        assert self._path is not None
        with suppress(OSError), self._path.open("a") as file:  # what is said is worth no run
            file.write(text)


def said_by(line: str, stage: str) -> bool:
    """Whether a line of the log is of this stage."""
    return line[TIME_LENGTH + 1 :].startswith(f"{stage}: ")
