"""Colour where a person looks: on a terminal, unless $NO_COLOR is set; never in a pipe or a file."""

from __future__ import annotations

import os
from typing import TextIO

CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2"}
STATUSES = {
    "ran": "green", "resumed": "green", "finished": "green", "passed": "green", "cached": "dim", "planned": "dim",
    "failed": "red", "FAILED": "red", "killed": "yellow", "skipped": "yellow", "running": "cyan", "starts": "cyan",
}  # fmt: skip
"""How the words are shown that say how a run or a stage is."""


def has_colour(stream: TextIO) -> bool:
    """Whether what is written there is seen by somebody who wants colour."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Text for this stream; `colour` is one of CODES, or none."""
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if colour and has_colour(stream) else text


def coloured_status(status: str, stream: TextIO) -> str:
    """A status word for this stream."""
    return coloured(status, STATUSES.get(status, ""), stream)
