"""The comparison as tables, pictures and a page, from reports in a store."""

from __future__ import annotations

import io
import itertools
import re
from html.parser import HTMLParser

import pytest

from flows.commands.comparison_text import full, markdown, short
from flows.tables import WIDTH
from pipelines.comparison import field_table, tables
from pipelines.comparison.charts import chart
from pipelines.comparison.comparison import Comparisons
from pipelines.comparison.frontier import frontier, points
from pipelines.comparison.page import page
from pipelines.comparison.pair_tables import matrix, pair_lines
from pipelines.comparison.side_by_side import side_by_side

ATTACK = "<script>alert(1)</script> <img src=x onerror=alert(2)> \"'&amp; | line\nnext"
RATES = {"win_rate": 0.6, "win_rate_low": 0.55, "win_rate_high": 0.65, "score_mean": -1.25, "score_mean_low": -1.5,
         "score_mean_high": -1.0, "preference_accuracy": 0.75, "perplexity": 44.73, "kl_to_reference": 16.32,
         "check_rate_low": 0.1, "check_rate_high": 0.9, "truncated_rate": 0.25}  # fmt: skip


@pytest.fixture
def compared(shelf):
    """A base, an SFT, and as many methods on it as wished, each with so many seeds; all figures there are."""

    def compared(methods: int = 2, seeds: int = 1, times: int = 1) -> Comparisons:
        base = shelf.made("base", "checkpoint", seed=None, seconds=2)
        data = shelf.made("data", "preferences", inputs={"base": base}, files={"test.jsonl": "rows"})
        trained = {"cost/tokens": 52_244.0, "cost/peak_memory_bytes": 3.2 * 2**30}
        sft = shelf.made("sft", "adapter", inputs={"base": base, "data": data}, metrics=trained, seconds=1370,
                           points=[{"train/loss": 1.0}] * 12)  # fmt: skip
        metrics = {f"eval/{name}": value for name, value in RATES.items()}
        reports = [shelf.report("base", base, [False] * 20 * times, data=data)]
        first = shelf.report("sft", sft, [True, False] * 10 * times, data=data, metrics=metrics, reference=base,
                               against=reports[0].key)  # fmt: skip
        reports.append(first)
        for number in range(methods):
            for seed in range(seeds):
                policy = shelf.made("dpo", "adapter", inputs={"policy": sft, "data": data}, metrics=trained,
                                      seed=seed, fields={"beta": 0.1 + number}, seconds=1790)  # fmt: skip
                name = f"method{number}" + (f"@seed={seed}" if seeds > 1 else "")
                passed = [row % (number + seed + 2) > 0 for row in range(20 * times)]
                reports.append(
                    shelf.report(name, policy, passed, data=data, metrics=metrics, reference=sft, against=first.key)
                )
        return Comparisons.of(reports, shelf.store)

    return compared


def test_quality_has_intervals_and_a_dash_for_what_was_not_measured(compared):
    headings, rows = tables.quality(compared().each[0])
    assert headings == ["policy", "check rate", "win rate", "score", "pref. acc.", "perplexity", "KL"]
    assert rows[0] == ["base", "0.0%", "–", "–", "–", "–", "–"]
    assert rows[2] == [
        "method0", "50.0% [10.0, 90.0%]", "60.0% [55.0, 65.0%]", "-1.25 [-1.50, -1.00]", "75.0%", "44.73", "16.32"
    ]  # fmt: skip
    note = tables.quality_note(compared().each[0])
    assert "KL, in nats a completion, is the log-ratio on the completions written (a KL where" in note
    assert note.endswith(
        " sft: win rate over base, KL to base. method0, method1: win rate over sft, KL to sft."
    )  # fmt: skip


def test_seeds_have_a_row_of_means_and_deviations_after_theirs(compared):
    comparison = compared(methods=1, seeds=3).each[0]
    names = [row[0] for row in tables.quality(comparison)[1]]
    assert names == ["base", "sft", "method0@seed=0", "method0@seed=1", "method0@seed=2", "method0, 3 seeds"]
    rates = [0.5, 13 / 20, 0.75]
    assert tables.quality(comparison)[1][-1][1] == f"{sum(rates) / 3:.1%}±12.6%"
    assert [row[0] for row in tables.costs(comparison)[1]] == ["base", "sft", "method0"]
    assert {row[0]: row[3] for row in field_table.field(comparison)[1]}["method0"] == "3 seeds ± 12.6 points"


def test_the_classic_table_and_costs_come_from_manifests(compared):
    comparison = compared(methods=1).each[0]
    headings, rows = field_table.field(comparison)
    assert headings == ["method", "reward", "RL", "stability", "compute", "quality"]
    assert rows[0] == ["base", "–", "–", "–", "–", "0.0%"]
    assert rows[1][:5] == ["sft", "none", "no", "1 seed", "1,370 + 3 s, 3.20 GiB"]
    assert rows[2][4:] == ["1,790 + 1,373 s, 3.20 GiB", "50.0%, not told from sft"]
    assert list(tables.before(comparison)) == ["sft: base 2 s, data 1 s", "method0: sft 1370 s, base 2 s, data 1 s"]


@pytest.mark.parametrize(("methods", "seeds"), [(2, 1), (8, 1), (2, 3)])
def test_a_terminal_of_118_columns_holds_every_line_whole(compared, methods, seeds):
    comparisons = compared(methods, seeds)
    for text in (short(comparisons), full(comparisons)):
        assert max(map(len, text.splitlines())) <= WIDTH
        for headings, rows in map(tables.quality, comparisons.each):  # no cell is broken
            assert [cell for cell in itertools.chain(headings, *rows) if cell not in text] == []


def test_many_pairs_are_a_square_with_opposite_signs(compared):
    assert matrix(compared(methods=3).each[0]) is None and len(pair_lines(compared(methods=3).each[0])) == 7
    comparison = compared(methods=8).each[0]
    headings, rows = matrix(comparison)
    assert headings == ["", "base", "sft", *(f"method{i}" for i in range(8))]
    cells = {row[0]: dict(zip(headings[1:], row[1:], strict=True)) for row in rows}
    assert cells["method1"]["method0"] == "+15.0" and cells["method0"]["method1"] == "-15.0"
    assert cells["sft"]["base"] == "+50.0" and cells["base"]["method0"] == ""
    assert [line.split(":")[0] for line in pair_lines(comparison)][:2] == ["sft - base", "method0 - sft"]


def test_the_square_marks_what_chance_is_ruled_out_for(compared):
    comparison = compared(methods=5, times=8).each[0]
    sure = {(pair.after, pair.before) for pair in comparison.pairs if pair.p_holm < 0.05}
    headings, rows = matrix(comparison)
    marked = {(row[0], name) for row in rows for name, cell in zip(headings[1:], row[1:], strict=True) if "*" in cell}
    assert sure and marked == sure | {(before, after) for after, before in sure}


def test_the_frontier_has_only_points_at_the_same_reference_and_that_one_at_0(compared):
    found = points(compared(methods=2).each[0], "eval/check_rate")
    assert [(one.name, one.kl) for one in found] == [("sft", 0.0), ("method0", 16.32), ("method1", 16.32)]
    assert (found[1].worth, found[1].low, found[1].high) == (0.5, 0.1, 0.9)


def test_the_frontier_takes_references_that_differ_in_seeds_for_one(shelf):
    reports = []
    for seed in (0, 1):
        sft = shelf.made("sft", "adapter", seed=seed)
        dpo = shelf.made("dpo", "adapter", inputs={"policy": sft}, seed=0)
        reports.append(shelf.report(f"sft_{seed}", sft, [True]))
        kl = {"eval/kl_to_reference": 2.0 + seed}
        reports.append(shelf.report(f"dpo_{seed}", dpo, [True], metrics=kl, reference=sft))
    found = points(Comparisons.of(reports, shelf.store).each[0], "eval/check_rate")
    assert [(one.name, one.kl) for one in found] == [("sft_0", 0), ("sft_1", 0), ("dpo_0", 2), ("dpo_1", 3)]


def test_the_pictures_name_every_policy(compared):
    comparison = compared(methods=3).each[0]
    bars, map_ = chart(comparison.policies), frontier(comparison)
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == [one.name for one in comparison.policies]
    named = {text.get_text() for text in map_.axes[0].texts}
    assert named == {"sft", "method0", "method1", "method2"}
    assert "the log-ratio on the completions written" in map_.get_supxlabel()


def test_a_name_may_hold_what_pictures_take_for_mathematics(shelf):
    """Or be as long as a page."""
    completions = [{"row": 0, "prompt": "", "completion": "", "completion_ids": [], "passed": True}]
    reports = [shelf.report_of(name, str(i) * 64, completions) for i, name in enumerate((r"$\broken{", "long" * 99))]
    chart(reports).savefig(io.BytesIO())


def test_no_pictures_without_figures(shelf):
    bare = shelf.report_of("one", "a" * 64, [{"row": 0, "prompt": "", "completion": "", "completion_ids": []}])
    comparison = Comparisons.of([bare], shelf.store).each[0]
    assert chart(comparison.policies) is None and frontier(comparison) is None
    assert "<h1>" in page(Comparisons.of([bare], shelf.store), "bare")


class Read(HTMLParser):
    """The page as a browser reads it: its tags with attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def attacked(shelf):
    completions = [{"row": 0, "prompt": ATTACK, "completion": ATTACK, "completion_ids": [1, 2, 3], "passed": True}]
    reports = [shelf.report_of(ATTACK + name, name * 64, completions) for name in "ab"]
    return Comparisons.of(reports, shelf.store)


def test_what_models_wrote_is_text_on_the_page_and_never_markup(attacked):
    read = Read(page(attacked, ATTACK, {ATTACK: 'https://x/"onclick="alert(3)'}))
    assert {"script", "iframe", "object", "link"}.isdisjoint(tag for tag, _ in read.tags)
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert read.text.count(ATTACK) > 5
    policy = next(one["content"] for tag, one in read.tags if tag == "meta" and "http-equiv" in one)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_stands_alone(compared):
    text = page(compared(methods=2), "a run", {"MLflow": "http://127.0.0.1:5000/#/compare-runs?runs=[]"})
    read = Read(text)
    sources = [one["src"] for tag, one in read.tags if tag == "img"]
    assert len(sources) == 3 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(one.get("alt") for tag, one in read.tags if tag == "img")
    assert [one["href"] for tag, one in read.tags if tag == "a"] == ["http://127.0.0.1:5000/#/compare-runs?runs=[]"]
    assert not re.search(r"url\(|@import|src=\"http", text)
    assert any(one.get("name") == "viewport" for tag, one in read.tags if tag == "meta")
    for part in ("method1 1", "prompt 0", "base 2 s", "can't tell differences", "prefers-color-scheme: dark"):
        assert part in text.replace("&#x27;", "'")


def test_markdown_keeps_a_completion_in_its_cell(attacked):
    heading, _, row = side_by_side(attacked.policies, 1).split("\n")
    assert all(line.replace("\\|", "").count("|") == 4 and "<br>next" in line for line in (heading, row))
    assert side_by_side(attacked.policies, 1) in markdown(attacked)
