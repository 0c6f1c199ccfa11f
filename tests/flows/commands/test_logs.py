"""`align logs`: of a finished, a killed, a running and an old run; and what writes them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.store import Store
from flows.cli import main
from flows.records import RunRecord
from flows.running.run_folder import RunFolder
from flows.running.run_log import RunLog
from flows.running.watch import Watcher
from tests.flows.kept_runs import keep_run, live_process, stage

LOG = """2026-11-26 20:00:00 sft: starts
2026-11-26 20:00:01 sft_2: starts
2026-11-26 20:00:09 sft: 1/50 steps  loss 2.3
2026-11-26 20:00:10 sft: sft_2: is said by sft
"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], str]:
    capsys.readouterr()
    assert main(["logs", *words]) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err


def test_a_run_says_all_and_a_stage_its_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_run(home, "tiny-1", [stage("sft"), stage("sft_2"), stage("dpo", "planned")], "KILLED", log=LOG)
    every = LOG.splitlines()
    assert said(capsys)[0] == said(capsys, "last")[0] == said(capsys, "tiny-1", "-f")[0] == every
    assert said(capsys, "tiny-1", "sft")[0] == said(capsys, "last:sft")[0] == [every[0], *every[2:]]
    assert said(capsys, "last", "sft_2")[0] == [every[1]]
    assert said(capsys, "last", "dpo") == ([], "dpo has said nothing yet\n")
    assert said(capsys, "last", "-f")[1] == "tiny-1: killed; align show tiny-1\n"


def test_a_stage_that_there_is_not_is_said_with_those_there_are(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_run(home, "tiny-1", [stage("sft"), stage("dpo")], log=LOG)
    assert main(["logs", "last", "dop"]) == 2
    assert capsys.readouterr().err == ("error: tiny-1 has no stage 'dop'; did you mean 'dpo'?; its stages: sft, dpo\n")


def test_what_was_cached_says_what_it_said_when_it_was_made_and_so_does_an_old_run(
    home: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    cached, begun = stage("sft", "cached"), stage("dpo", "planned")
    for place, text in ((store.folder("sft", cached["key"]), "made\n"), (store.draft("dpo", begun["key"]), "begun\n")):
        place.mkdir(parents=True)
        (place / "log.txt").write_text(text)
    keep_run(home, "tiny-1", [cached, begun], log="2026-11-26 20:00:00 sft: cached (0 s)\n")
    assert said(capsys, "tiny-1", "sft")[0] == ["made"]
    RunRecord("r.yaml", "old", None, None, [cached, begun]).save(home)
    assert said(capsys, "old")[0] == ["sft: made", "dpo: begun"]


def test_following_shows_lines_as_they_come_and_ends_with_the_run(home: Path) -> None:
    keep_run(home, "tiny-1", [stage("sft", "planned")], "RUNNING", log=LOG)
    run = live_process(home, "tiny-1")
    follower = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "logs", "-f"], cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout is not None and follower.stderr is not None
    assert [follower.stdout.readline() for _ in range(4)] == LOG.splitlines(keepends=True)
    with RunFolder(home, "tiny-1").log.open("a") as file:
        file.write("2026-11-26 20:00:11 sft: hälf")
        file.flush()
        time.sleep(0.5)
        file.write(" a line\n")
    assert follower.stdout.readline() == "2026-11-26 20:00:11 sft: hälf a line\n"
    assert follower.poll() is None
    run.kill()
    run.wait()
    assert follower.wait(timeout=60) == 0
    assert follower.stderr.read() == "tiny-1: killed; align show tiny-1\n"


def test_following_a_stage_ends_with_the_stage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_run(home, "tiny-1", [stage("sft"), stage("dpo", "planned")], "RUNNING", log=LOG)
    run = live_process(home, "tiny-1")
    assert len(said(capsys, "last", "sft", "-f")[0]) == 3
    run.kill()
    run.wait()


def test_a_watcher_keeps_what_it_hears_from_before_the_run_had_a_folder_on(tmp_path: Path) -> None:
    watcher, log = Watcher(), tmp_path / "log.txt"
    watcher.line("base", "cached, but")
    watcher.begin("tiny-1", log)
    watcher.stage("sft", "starts")
    for done in range(1, 11):
        watcher.progress("sft", done, 10, "steps", {"loss": 1.0 / done})
    watcher.stage("sft", "failed", "first line\nsecond line")
    assert [line[20:] for line in log.read_text().splitlines()] == [
        "base: cached, but", "sft: starts", "sft: 1/10 steps  loss 1", "sft: 10/10 steps  loss 0.1",
        "sft: failed (first line", "sft: second line)",
    ]  # fmt: skip


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    log = RunLog()
    log.begin(tmp_path / "no" / "folder" / "log.txt")
    log.say("sft", "starts")
