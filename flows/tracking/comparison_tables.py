"""A comparison as tables that MLflow's pages open: figures, costs, and the completions of one prompt in one row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.comparison import tables
from pipelines.comparison.comparison import Comparison, Comparisons
from pipelines.comparison.side_by_side import verdict, written

TABLES = ("evaluation.json", "costs.json", "completions.json")
"""What a pipeline run has of them, each with the policies that were evaluated alike after one another."""
PROMPTS = 200

Table = tuple[list[str], list[list[str]]]


def write_tables(comparisons: Comparisons, folder: Path) -> None:
    """Into files of the run, in the form that MLflow's own `log_table` gives them."""
    for name, make in zip(TABLES, (tables.quality, tables.costs, _completions), strict=True):
        columns, rows = _joined([make(comparison) for comparison in comparisons.each])
        (folder / name).write_text(json.dumps({"columns": columns, "data": rows}))


def _completions(comparison: Comparison) -> Table:
    """A prompt, and what each policy made of it, after the check's outcome and the score."""
    names = [policy.name for policy in comparison.policies]
    rows = []
    for prompt, completions in written(comparison.policies, PROMPTS):
        of = {one.policy: f"{verdict(one)}{one.text}" for one in completions}
        rows.append([prompt, *(of.get(name, tables.NONE) for name in names)])
    return ["prompt", *names], rows


def _joined(parts: Sequence[Table]) -> Table:
    """Tables below each other; a column that one lacks is empty there."""
    columns = list(dict.fromkeys(column for headings, _ in parts for column in headings))
    rows = [
        [dict(zip(headings, row, strict=True)).get(column, "") for column in columns]
        for headings, lines in parts
        for row in lines
    ]
    return columns, rows
