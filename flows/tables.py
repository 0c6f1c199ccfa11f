"""Tables for a terminal, as text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flows.colours import STATUSES, has_colour

WIDTH = 118
DAY_S = 86_400


def render(shown: Table | Tree, width: int = WIDTH) -> str:
    """A rich table or tree as text of a bounded width, coloured only for a terminal."""
    colour = has_colour(sys.stdout)
    system: Literal["standard"] | None = "standard" if colour else None
    console = Console(
        file=StringIO(), width=width, force_terminal=colour, color_system=system, markup=False, emoji=False
    )
    console.print(shown)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def text_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = (), width: int = WIDTH
) -> str:
    """Rows under headings; the columns `numbers` stand to the right, and others are folded before they are.

    A status word in a column that is headed so, or not at all, has its colour.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        number = heading in numbers
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        # As Text, since a string would be read as rich's markup: an error may well name [/a/b].
        table.add_row(*(Text(cell, _style(heading, cell)) for heading, cell in zip(headings, row, strict=True)))
    return render(table, width)


def _style(heading: str, cell: str) -> str:
    return STATUSES.get(cell, "") if heading in ("", "status") else ""


def duration(seconds: float) -> str:
    """Roughly how long, in the unit that says it shortest."""
    for unit, least, length in (("d", 3 * DAY_S, DAY_S), ("h", 60_000, 3600), ("min", 600, 60)):
        if seconds >= least:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def garbage_table(lines: Sequence[Mapping[str, Any]], removes: bool) -> str:
    """What `align gc` can remove, and how much that is."""
    if not lines:
        return "nothing to remove: kept runs refer to all there is"
    rows = [[line["path"], f"{line['bytes'] / 2**20:,.1f} MiB", line["why"]] for line in lines]
    total = sum(line["bytes"] for line in lines) / 2**20
    said = f"{len(lines)} folders, {total:,.1f} MiB" + ("" if removes else "; nothing removed yet: add --yes")
    return f"{text_table(['folder', 'frees', 'why'], rows, ['frees'])}\n{said}"


def gate_table(conditions: Sequence[Mapping[str, Any]]) -> str:
    """One line a condition: what was wanted and what was got."""
    rows = [
        [
            one["condition"], "no champion yet" if one["wanted"] is None else f"{one['wanted']:.6g}",
            f"{one['got']:.6g}", "passed" if one["passed"] else "FAILED",
        ]
        for one in conditions
    ]  # fmt: skip
    return text_table(["condition", "wanted", "got", ""], rows, ["wanted", "got"])
