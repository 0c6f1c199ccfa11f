"""The comparison for a terminal and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from flows.tables import WIDTH, text_table
from pipelines.comparison import field_table, pair_tables, tables
from pipelines.comparison.comparison import Comparison, Comparisons
from pipelines.comparison.markdown_text import inert
from pipelines.comparison.side_by_side import PROMPTS, side_by_side


def short(comparisons: Comparisons) -> str:
    """What a run ends with: quality, differences, conclusions."""
    parts = list(map(_wrapped, comparisons.remarks))
    for comparison in comparisons.each:
        parts += ["", *_findings(comparison)]
    return "\n".join(parts).lstrip("\n")


def full(comparisons: Comparisons, completions: int = 0) -> str:
    """All tables, and the first prompts side by side if so wished."""
    parts = list(map(_wrapped, comparisons.remarks))
    for comparison in comparisons.each:
        headings, rows = tables.costs(comparison)
        parts += ["", *_findings(comparison), "", text_table(headings, rows, headings[1:])]
        parts += [_wrapped(tables.COST_NOTE), *map(_wrapped, tables.before(comparison))]
        parts += ["", text_table(*field_table.field(comparison)), _wrapped(field_table.FIELD_NOTE)]
        parts += ["", side_by_side(comparison.policies, completions)] if completions else []
    return "\n".join(parts).lstrip("\n")


def _findings(comparison: Comparison) -> Iterator[str]:
    headings, rows = tables.quality(comparison)
    yield text_table(headings, rows, headings[1:])
    yield _wrapped(tables.quality_note(comparison))
    yield ""
    yield from pair_tables.pair_lines(comparison)
    if (square := pair_tables.matrix(comparison)) is not None:
        yield text_table(*square, square[0][1:])
        yield _wrapped(pair_tables.MATRIX_NOTE)
    if (said := pair_tables.verdicts(comparison)) is not None:
        yield text_table(*said, said[0][2:])
        yield _wrapped(pair_tables.VERDICTS_NOTE)
    yield from map(_wrapped, comparison.conclusions)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def markdown_findings(comparisons: Comparisons) -> str:
    """Quality, differences and conclusions."""
    parts = [f"{inert(line)}\n" for line in comparisons.remarks]
    for comparison in comparisons.each:
        said = [*pair_tables.pair_lines(comparison), *comparison.conclusions]
        parts += [_markdown(*tables.quality(comparison)), tables.quality_note(comparison) + "\n"]
        parts += ["\n".join(f"- {inert(line)}" for line in said) + "\n"]
        if (square := pair_tables.matrix(comparison)) is not None:
            parts += [_markdown(*square), pair_tables.MATRIX_NOTE + "\n"]
        if (judged := pair_tables.verdicts(comparison)) is not None:
            parts += [_markdown(*judged), pair_tables.VERDICTS_NOTE + "\n"]
        parts += [_markdown(*field_table.field(comparison))]
    return "\n".join(parts)


def markdown(comparisons: Comparisons) -> str:
    """All of it, with the first prompts side by side."""
    parts = [markdown_findings(comparisons)]
    for comparison in comparisons.each:
        needed = "\n".join(f"- {inert(line)}" for line in tables.before(comparison))
        parts += [_markdown(*tables.costs(comparison)), tables.COST_NOTE + "\n", needed + "\n"]
        parts += ["## Side by side\n", side_by_side(comparison.policies, PROMPTS) + "\n"]
    return "\n".join(parts)


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(inert, line))} |" for line in lines) + "\n"
