"""`align runs` and `align show`: how each run is, when it began, what it cost, and what was made from what."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from flows.cli import main
from flows.records import RunRecord
from tests.flows.kept_runs import keep_run, live_process, stage
from tests.flows.terminal import on_terminal

STAGES = [stage("base", "cached"), stage("sft"), stage("dpo")]


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_each_run_says_how_it_is_when_it_began_and_what_it_cost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_run(home, "tiny-1", STAGES)
    assert [line.split("  ") for line in lines(capsys, "runs")[1:]] == [
        ["tiny-1", "finished", "3 h ago", "1 cached, 2 ran", "120 s", " 2,000"]
    ]


@pytest.mark.parametrize(
    ("facts", "stages", "live", "status"),
    [
        ("FINISHED", STAGES, False, "finished"),
        ("FAILED", [stage("sft", "failed")], False, "failed"),
        ("KILLED", [stage("sft", "planned")], False, "killed"),
        ("RUNNING", [stage("sft", "planned")], True, "running"),
        ("RUNNING", [stage("sft", "planned")], False, "killed"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | bool) else "",
)
def test_a_run_whose_process_is_gone_is_not_running(
    home: Path, capsys: pytest.CaptureFixture[str], facts: str, stages: list[dict], live: bool, status: str
) -> None:
    keep_run(home, "tiny-1", stages, facts)
    process = live_process(home, "tiny-1") if live else None
    assert json.loads(lines(capsys, "runs", "--json")[0])[0]["status"] == status
    if process is not None:
        process.kill()
        process.wait()


def test_after_a_clock_was_set_back_the_newest_run_is_the_last_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_run(home, "tiny-1", STAGES)
    ahead = time.time() + 7200
    os.utime(home / "runs" / "tiny-1.json", (ahead, ahead))
    keep_run(home, "tiny-2", STAGES, hours=-1.0)  # as it looks once the clock has been set back again
    assert [line.split("  ")[::2][:2] for line in lines(capsys, "runs")[1:]] == [
        ["tiny-2", "just now"],
        ["tiny-1", "3 h ago"],
    ]
    assert json.loads(lines(capsys, "show", "last", "--json")[0])["run_id"] == "tiny-2"


def test_json_only_adds_to_what_was_promised(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = keep_run(home, "tiny-1", STAGES)
    (run,) = json.loads(lines(capsys, "runs", "--json")[0])
    assert run == json.loads(lines(capsys, "show", "last", "--json")[0])
    promised = {"recipe", "run_id", "flow_run_id", "mlflow_run_id", "stages"}
    assert {name: run[name] for name in promised} == record.as_dict()
    assert set(run) - promised == {"status", "started", "seconds", "tokens"}
    assert (run["seconds"], run["tokens"]) == (120.0, 2000)


def test_a_record_from_before_runs_had_folders_can_still_be_listed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [{name: value for name, value in one.items() if name != "inputs"} for one in STAGES]
    RunRecord("r.yaml", "old", None, None, old).save(home)
    assert lines(capsys, "runs")[1].startswith("old  finished  ")
    assert not any(line.startswith("lineage") for line in lines(capsys, "show", "old"))


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_the_terminal_one_line_a_run(home: Path, columns: int) -> None:
    statuses = ["ran"] * 12 + ["cached"] * 3 + ["failed"] + ["skipped"] * 11
    keep_run(home, "compare-20261126-170950-0251", [stage(f"s{n}", one) for n, one in enumerate(statuses)], "FAILED")
    said = on_terminal("runs", columns=columns, NO_COLOR="1").splitlines()
    assert len(said[1]) <= columns and said[1].startswith("compare-20261126-170950-0251  failed  3 h ago")
    assert ("12 ran, 3 cached, 1 failed, 11 skipped" if columns == 120 else " 15/27 ") in said[1]
    assert said[2] == "" and "align show RUN" in said[3]


def test_a_run_is_drawn_as_a_tree_each_stage_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_run(home, "tiny-1", [
        stage("base", "cached"),
        stage("pairs", "cached", inputs={"base": "base"}),
        stage("sft", inputs={"base": "base", "data": "rows"}),
        stage("rows", inputs={"base": "base"}),
        stage("reward", inputs={"base": "base", "data": "pairs"}),
        stage("dpo", inputs={"policy": "sft", "data": "pairs"}),
        stage("ppo", "failed", inputs={"policy": "sft", "data": "pairs", "reward": "reward"}),
    ])  # fmt: skip
    shown = lines(capsys, "show", "last")
    start = shown.index(next(line for line in shown if line.startswith("lineage")))
    assert shown[start : start + 8] == [
        "lineage      status  key       with",
        "base         cached  62617365",
        "├── pairs    cached  70616972",
        "├── sft      ran     73667400  data: rows",
        "│   ├── dpo  ran     64706f00  data: pairs",
        "│   └── ppo  failed  70706f00  data: pairs, reward",
        "├── rows     ran     726f7773",
        "└── reward   ran     72657761  data: pairs",
    ]
    assert "what ppo said: align logs tiny-1 ppo" in shown


def test_an_error_that_names_a_path_in_brackets_is_shown_as_it_is(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_run(home, "tiny-1", [stage("sft", "failed", error="wanted one of [/a/b] or [red]", path=None)], "FAILED")
    assert any("wanted one of [/a/b] or [red]" in line for line in lines(capsys, "show", "last"))


def test_colour_is_for_a_terminal_alone_and_for_those_who_want_it(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_run(home, "tiny-1", [stage("sft", "failed")], "FAILED")
    assert "\x1b[31mfailed\x1b[0m" in on_terminal("runs")
    assert "\x1b[31merror:\x1b[0m no run is named" in on_terminal("show", "nothing")
    assert "\x1b" not in on_terminal("runs", NO_COLOR="1")
    assert "\x1b" not in on_terminal("runs", TERM="dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in "".join(lines(capsys, "runs"))
