"""Tables for a terminal, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 118


def render(table: Table, width: int = WIDTH) -> str:
    """A rich table as plain text of a bounded width."""
    console = Console(file=StringIO(), width=width, color_system=None, markup=False, emoji=False)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def text_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = (), width: int = WIDTH
) -> str:
    """Rows under headings; the columns `numbers` stand to the right, and others are folded before they are."""
    table = Table(box=None, pad_edge=False, header_style="none")
    for heading in headings:
        number = heading in numbers
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*row)
    return render(table, width)


def run_tables(record: Any, *, paths: bool) -> str:
    """A run's stages, its policies compared, and what to open next."""
    from flows.comparison_text import short
    from flows.summary import comparisons_of, headline, mlflow_link

    rows = [
        [stage["name"], stage["status"], f"{stage['seconds']:.0f} s", headline(stage), stage["key"][:12]]
        for stage in record.stages
    ]
    parts = [text_table(["stage", "status", "time", "figure", "key"], rows, ["time"])]
    if (comparisons := comparisons_of(record)).each:
        parts += ["", short(comparisons)]
    if paths:
        parts += ["", *(f"{stage['name']}: {stage['path']}" for stage in record.stages if stage["path"])]
    parts += ["", f"run {record.run_id}: align show {record.run_id}"]
    if comparisons.each:
        parts.append(f"costs, needs, curves and completions: align compare {record.run_id} --html FILE")
    link = mlflow_link(record)
    parts.append(f"MLflow: {link}" if link else "MLflow: `align up` shows it in a browser")
    merged = [stage for stage in record.stages if stage["uses"] == "merge" and stage["path"]]
    parts += [f"{stage['name']}: {stage['path']}" for stage in merged]
    return "\n".join(parts)


def runs_table(records: Sequence[Any]) -> str:
    """One line a run."""
    if not records:
        return "no runs yet; start with: align run pipelines/tiny.yaml"
    rows = []
    for record in records:
        counts: dict[str, int] = {}
        for stage in record.stages:
            counts[stage["status"]] = counts.get(stage["status"], 0) + 1
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        rows.append(
            [
                record.run_id,
                Path(record.recipe).name,
                said,
                f"{sum(s['seconds'] for s in record.stages):.0f} s",
            ]
        )
    return text_table(["run", "recipe", "stages", "time"], rows, ["time"])


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
