"""`align compare` as it is typed: what it refuses, what it writes, what `--json` promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from artifacts.store import Store
from flows.cli import main
from flows.records import RunRecord
from flows.tracking.compare_links import Place, compare_page
from tests.shelf import Shelf

Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(home: Path, store: Store) -> dict[str, str]:
    """Runs `long`, of three policies, the last with shorter completions, and `other`; gives the reports' keys."""
    shelf = Shelf(store)
    data = shelf.made("data", "preferences", files={"test.jsonl": "rows"})
    policies = {name: shelf.made("sft", "adapter", metrics={"cost/tokens": 9.0}, fields={"learning_rate": rate})
                for name, rate in (("sft", 0.1), ("dpo", 0.2), ("ppo", 0.3), ("kto", 0.4))}  # fmt: skip
    stages: dict[str, dict[str, Any]] = {}
    for number, (name, policy) in enumerate(policies.items()):
        passed = [row < 2 + number for row in range(8)]
        report = shelf.report(name, policy, passed, data=data, max_new_tokens=16 if name == "ppo" else 48)
        stages[name] = {"name": f"eval_{name}", "uses": "evaluate", "key": report.key, "status": "ran", "seconds": 1.0,
                        "path": str(shelf.folder("evaluate", report.key)), "digest": "", "metrics": report.metrics,
                        "mlflow_run_id": None, "error": None}  # fmt: skip
    RunRecord("r.yaml", "long", None, None, [stages[name] for name in ("sft", "dpo", "ppo")]).save(home)
    RunRecord("r.yaml", "other", None, None, [stages["kto"]]).save(home)
    return {name: stage["key"] for name, stage in stages.items()}


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    def compare(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["compare", *words])
        return (status, *capsys.readouterr())

    return compare


def test_reports_of_different_held_out_sets_are_refused_by_name(runs: dict[str, str], compare: Compare) -> None:
    status, out, err = compare("long:eval_sft", "long:eval_ppo")
    assert (status, out) == (2, "")
    assert err == (
        "error: long:eval_sft and long:eval_ppo were evaluated on different held-out sets: max_new_tokens 48 and 16; "
        "evaluate them with the same data and settings, or compare those alone that have them\n"
    )
    assert compare(runs["ppo"][:12], "other")[0] == 2


def test_a_run_that_has_several_is_shown_in_parts(runs: dict[str, str], compare: Compare) -> None:
    status, out, _ = compare("long")
    assert status == 0
    assert out.startswith("sft and ppo were evaluated on different held-out sets: max_new_tokens 48 and 16\n")
    assert "dpo - sft: +12.5%" in out and "ppo - " not in out


def test_reports_of_several_runs_are_compared_where_they_fit(runs: dict[str, str], compare: Compare) -> None:
    status, out, _ = compare("long:eval_sft", "other")
    assert status == 0 and "other:kto - long:eval_sft: +37.5%" in out


def test_json_has_every_figure(runs: dict[str, str], compare: Compare) -> None:
    status, out, _ = compare("long", "--json")
    answer = json.loads(out)
    assert status == 0
    assert set(answer) == {
        "policies", "methods", "differences", "pairs", "verdicts", "conclusions", "remarks", "links"
    }  # fmt: skip
    assert [policy["name"] for policy in answer["policies"]] == ["sft", "dpo", "ppo"]
    assert set(answer["policies"][0]) == {
        "name", "metrics", "by_kind", "key", "policy", "against", "reference", "held_out", "trained_by", "costs",
        "before", "reward", "sampling", "stability",
    }  # fmt: skip
    assert set(answer["pairs"][0]) == {
        "before", "after", "measure", "prompts", "difference", "low", "high", "p", "p_holm", "smallest",
        "smallest_holm", "p_seeds", "verdict",
    }  # fmt: skip
    assert answer["pairs"][0]["p"] == 1.0 and answer["policies"][0]["costs"]["cost/tokens"] == 9.0
    assert answer["differences"] == ["dpo - sft: +12.5% [+0.0%, +37.5%], p = 1.00, no clear difference"]


def test_a_page_and_pictures_are_written_where_they_can_be(
    runs: dict[str, str], compare: Compare, tmp_path: Path
) -> None:
    page, chart = tmp_path / "page.html", tmp_path / "chart.png"
    status, _, err = compare("long", "--html", str(page), "--chart", str(chart), "--frontier", str(tmp_path / "f.svg"))
    assert status == 0
    assert page.read_text().startswith("<!doctype html>") and "<h1>long</h1>" in page.read_text()
    assert compare("last", "--html", str(page))[0] == 0
    assert "<h1>other</h1>" in page.read_text()  # by tomorrow `last` is another
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert err == f"{tmp_path}/f.svg: not written: no two of these policies have the figures for it\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "/nowhere/page.html"], "--html: wanted a file in a folder that is there, got /nowhere/page.html"),
        (["--chart", "chart.txt"], "--chart: wanted a file named *.png, *.svg, *.pdf, got chart.txt"),
        (["--frontier", "/"], "--frontier: wanted a file in a folder that is there, got /"),
        (["--completions", "-1"], "--completions: wanted 0 or more, got -1"),
    ],
)
def test_what_can_not_be_written_is_said_before_anything(
    runs: dict[str, str], compare: Compare, words: list[str], said: str
) -> None:
    assert compare("long", *words) == (2, "", f"error: {said}\n")


def test_a_file_that_may_not_be_written_is_said(runs: dict[str, str], compare: Compare, monkeypatch: Any) -> None:
    status, out, err = compare("long", "--html", "/proc/page.html")  # nobody may, but root is not told so before
    assert (status, out) == (2, "") and "/proc/page.html" in err
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert compare("long", "--html", "page.html") == (
        2, "", "error: --html: wanted a file that you may write, got page.html\n"
    )  # fmt: skip


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_an_answer_of_no_tokens_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["chat", "last:merge", "--max-new-tokens", number])
    assert ended.value.code == 2 and "--max-new-tokens: wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "server"), [("http://mlflow:80/", "http://mlflow:80"), ("sqlite:///x.db", "http://127.0.0.1:5000")]
)
def test_mlflows_page_is_addressed_with_every_run_and_each_experiment_once(uri: str, server: str) -> None:
    address = compare_page(uri, [Place("a1", "2"), Place("b2", "2"), Place("c3", "7")])
    assert address.startswith(f"{server}/#/compare-runs?")
    assert parse_qs(address.split("?")[1]) == {"runs": ['["a1","b2","c3"]'], "experiments": ['["2","7"]']}
    assert not set(address) & set('[]" ')
