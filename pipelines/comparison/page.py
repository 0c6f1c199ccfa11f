"""The comparison as one HTML file that stands alone: pictures inlined, no script, dark where the reader's screen is.

Whatever comes from outside, above all what models wrote, is escaped, and the page's own policy forbids scripts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from pipelines.comparison import field_table, pair_tables, tables
from pipelines.comparison.charts import chart
from pipelines.comparison.comparison import Comparison, Comparisons
from pipelines.comparison.frontier import frontier
from pipelines.comparison.pairs import Pair, p_shown
from pipelines.comparison.side_by_side import Written, written
from pipelines.comparison.style import STYLE
from pipelines.curves import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PROMPTS, OPEN = 24, 3
"""Prompts whose completions are shown, and how many of them unfolded."""


def page(comparisons: Comparisons, title: str, links: Mapping[str, str] | None = None) -> str:
    """The whole page; `links` are addresses by what they lead to."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<p class=note>{escape(line)}.</p>" for line in comparisons.remarks)]
    for comparison in comparisons.each:
        body += _sections(comparison)
    shown = [f'<li><a href="{escape(where)}">{escape(name)}</a></li>' for name, where in (links or {}).items()]
    if shown:
        body += ["<h2>Elsewhere</h2>", f"<ul>{''.join(shown)}</ul>"]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _sections(comparison: Comparison) -> Iterator[str]:
    yield f"<ul class=findings>{''.join(f'<li>{escape(line)}</li>' for line in comparison.conclusions)}</ul>"
    yield "<h2>Quality</h2>" + _table(*tables.quality(comparison)) + _note(tables.quality_note(comparison))
    yield _picture(chart(comparison.policies), "check rate or score of each policy")
    if comparison.pairs:
        yield "<h2>Differences, prompt by prompt</h2>" + _pairs(comparison)
    if (said := pair_tables.verdicts(comparison)) is not None:
        yield "<h2>What a judge says</h2>" + _table(*said) + _note(pair_tables.VERDICTS_NOTE)
    if (drawn := frontier(comparison)) is not None:
        yield "<h2>Worth against distance</h2>" + _picture(
            drawn, "worth of each policy against its KL to the reference"
        )
    yield (
        "<h2>The classic table</h2>"
        + _table(*field_table.field(comparison), kind="words")
        + _note(field_table.FIELD_NOTE)
    )
    yield "<h2>Writing and cost</h2>" + _table(*tables.costs(comparison)) + _note(tables.COST_NOTE)
    yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in tables.before(comparison))}</ul>"
    yield from _curves(comparison)
    yield f"<h2>Side by side</h2>{''.join(_completions(comparison))}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Scrolls by itself where the screen is narrower."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return f"<div class=wide><table class={kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cells(row: Sequence[str]) -> str:
    return f"<th>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])


def _note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>"


def _pairs(comparison: Comparison) -> str:
    headings = ["pair", "difference", "95% interval", "p", "p, Holm", "verdict"]
    every = _table(headings, [_pair(pair) for pair in comparison.pairs])
    if (square := pair_tables.matrix(comparison)) is None:
        return every
    note = _note(pair_tables.MATRIX_NOTE)
    return f"{_table(*square)}{note}<details><summary>All {len(comparison.pairs)} pairs</summary>{every}</details>"


def _pair(pair: Pair) -> list[str]:
    shown = [pair.shown(value) for value in (pair.difference, pair.low, pair.high)]
    return [
        f"{pair.after} - {pair.before}", shown[0], f"{shown[1]} to {shown[2]}", p_shown(pair.p), p_shown(pair.p_holm),
        pair.verdict,
    ]  # fmt: skip


def _picture(figure: Figure | None, what: str) -> str:
    if figure is None:
        return ""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return f'<img alt="{escape(what)}" src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'


def _curves(comparison: Comparison) -> Iterator[str]:
    """Each training's curves, folded."""
    shown = []
    for name, history in comparison.histories.items():
        if history.folder is not None and (figure := curves(history.folder / "metrics.jsonl")) is not None:
            picture = _picture(figure, f"training curves of {name}")
            shown.append(f"<details><summary>{escape(name)}</summary>{picture}</details>")
    if shown:
        yield "<h2>Training curves</h2>" + "".join(shown)


def _completions(comparison: Comparison) -> Iterator[str]:
    for number, (prompt, completions) in enumerate(written(comparison.policies, PROMPTS)):
        unfolded = " open" if number < OPEN else ""
        cards = "".join(map(_card, completions))
        yield f"<details{unfolded}><summary>{escape(prompt)}</summary><div class=cards>{cards}</div></details>"


def _card(one: Written) -> str:
    kind = {True: "passed", False: "failed", None: ""}[one.passed]
    said = [kind] if kind else []
    said += [f"score {one.score:.2f}"] if one.score is not None else []
    said += ["cut off"] if one.truncated else []
    return (
        f'<div class="card {kind}"><b>{escape(one.policy)}</b> <small>{", ".join(said)}</small>'
        f"<p>{escape(one.text)}</p></div>"
    )
