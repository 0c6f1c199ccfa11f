"""Names and completions on pages of Markdown: nothing in them becomes markup, a link, or the end of a cell."""

from __future__ import annotations

import pytest

from flows.commands.comparison_text import markdown
from flows.commands.summary import _markdown
from flows.records import RunRecord
from flows.tables import text_table
from flows.tracking.compare_links import Place
from flows.tracking.notes import run_note, stage_note
from pipelines.comparison.comparison import Comparisons
from pipelines.comparison.markdown_text import in_code, inert

EVIL = (
    '<script>alert(1)</script> "><img onerror=x> | `code` \\| [a](javascript:alert(1)) [b]: http://x\n# head\r\x1b[2J'
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("eval_dpo: +21.4% [+15.5%, +27.8%]", "eval_dpo: +21.4% [+15.5%, +27.8%]"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a|b\\|c`d", "a&#124;b&#92;&#124;c&#96;d"),
        ("[x](y) [x][y] [x]: y", "[x&#93;(y) [x&#93;[y] [x&#93;: y"),
        ("one\ntwo\r\nthree\u2028four", "one<br>two<br>three<br>four"),
        ("\x1b[31mred\x07", "\ufffd[31mred\ufffd"),
    ],
)
def test_inert(text: str, shown: str):
    assert inert(text) == shown


def test_nothing_ends_code():
    assert in_code("a`b\nc``") == "`a'b c''`"


def harmless(page: str) -> bool:
    """Whether the page holds what was planted as text alone: its own markup is `<br>`, and its links are ours."""
    return not any(word in page.replace("<br>", "") for word in ("<", "](javascript", "\n# head", "`code`", "\x1b"))


def test_every_page_of_markdown_shows_names_errors_and_completions_as_text(shelf):
    completions = [{"row": 0, "prompt": EVIL, "completion": EVIL, "completion_ids": [1, 2, 3], "passed": True}]
    compared = Comparisons.of([shelf.report_of(EVIL + name, name * 64, completions) for name in "ab"], shelf.store)
    stage = {"name": EVIL, "status": "failed", "seconds": 1.0, "error": EVIL.replace("\n", " "), "metrics": {},
             "key": "k" * 64, "mlflow_run_id": "r" * 32}  # fmt: skip
    record = RunRecord("recipe.yaml", EVIL.replace("\n", " "), None, None, [stage])
    summary = _markdown(record, compared, {"Prefect flow run": "http://127.0.0.1:4200/runs/1"})
    assert harmless(markdown(compared)) and harmless(summary.removeprefix("#"))
    facts = {"name": record.run_id, "ui": None, "summary": summary}
    place = Place("a1", "1")
    assert harmless(run_note(place, [], [stage], lambda key: place, facts).replace(f"# {record.run_id}", ""))
    facts = {"name": EVIL, "uses": "sft", "run_id": "recipe-1", "key": "0" * 64, "inputs": {"base": stage}}
    assert harmless(stage_note(place, [], place, lambda key: None, facts))
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[:3]} == {6}


def test_a_terminals_table_takes_no_cell_for_markup():
    """`[/red]` alone would end the run's last table, and the run, with an error."""
    assert "[/red] [bold]x[/bold] :smile:" in text_table(["a"], [["[/red] [bold]x[/bold] :smile:"]])
