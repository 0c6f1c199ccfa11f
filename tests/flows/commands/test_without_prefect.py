"""A flow whose Prefect server is gone when it ends: what `align run` and `align retrain` make of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import ConnectError, HTTPError, HTTPStatusError, Request, Response

import flows.retrain
from artifacts.errors import AlignError, InterruptedStage, StageError, UserError
from flows.cli import main
from flows.commands.without_prefect import without_prefect
from flows.deployments.retraining import Retrained
from flows.records import RunRecord
from flows.registry.decisions import Decision
from flows.running.watch import Watcher, watcher

GONE = "[Errno 111] Connection refused"


def gone() -> None:
    raise ConnectError(GONE)


def gone_after(error: BaseException) -> ConnectError:
    """What is raised where the flow met `error`, of which Prefect was to be told."""
    try:
        try:
            raise error
        except BaseException:
            gone()
    except ConnectError as caught:
        return caught
    raise AssertionError


def begun(home: Path, status: str, stage: str = "planned") -> str:
    """A run that ended, or did not, so."""
    lines = [{"name": "sft", "uses": "sft", "key": "a" * 64, "status": stage, "seconds": 1.0, "error": "sft: no"}]
    RunRecord("r.yaml", "r-1", None, None, lines).save(home)
    (home / "runs" / "r-1").mkdir()
    (home / "runs" / "r-1" / "facts.json").write_text(json.dumps({"status": status}))
    return "r-1"


def seen(home: Path, error: HTTPError, status: str | None = None, stage: str = "planned") -> AlignError | None:
    watch = Watcher()
    watch.run_id = begun(home, status, stage) if status else None
    return without_prefect(home, watch, error)


@pytest.mark.parametrize("status", [None, "RUNNING", "KILLED"])
def test_an_interrupted_run_is_interrupted(home: Path, status: str | None) -> None:
    found = seen(home, gone_after(KeyboardInterrupt()), status)
    assert isinstance(found, InterruptedStage) and found.exit_status == 130
    assert str(found) == f"interrupted, and Prefect went away: {GONE}; run the same command again to go on"


def test_the_flows_own_error_is_not_hidden(home: Path) -> None:
    error = UserError("recipe.yaml: dpo.beta: wanted a number")
    assert seen(home, gone_after(error)) is error


def test_a_server_of_another_version_is_said_to_be_one(home: Path, old_prefect: int, monkeypatch: Any) -> None:
    """It answers, and knows nothing of what it is asked."""
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{old_prefect}/api")
    asked = Request("POST", f"http://127.0.0.1:{old_prefect}/api/flows/")
    found = seen(home, HTTPStatusError("422", request=asked, response=Response(422)))
    assert isinstance(found, UserError)
    assert str(found) == (
        f"Prefect at http://127.0.0.1:{old_prefect}: wanted <3.10,>=3.8.8, got 3.1.0; start one of such a version, "
        "or unset PREFECT_API_URL"
    )


@pytest.mark.parametrize("status", ["RUNNING", "KILLED"])
def test_a_run_that_was_cut_short_by_it_has_failed(home: Path, status: str) -> None:
    found = seen(home, ConnectError(GONE), status)
    assert isinstance(found, StageError) and "run the same command again" in str(found)


def test_a_run_that_had_ended_is_what_it_was(home: Path) -> None:
    assert seen(home, ConnectError(GONE), "FINISHED", "ran") is None


def test_a_run_with_a_failed_stage_has_failed(home: Path) -> None:
    assert str(seen(home, ConnectError(GONE), "FAILED", "failed")) == "sft: no"


DECISION = Decision("promoted", "assistant", "k" * 64, "2", "2", "1", "today", [], "r-1")


@pytest.fixture
def retrain(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`align retrain`, of which all but what `does` is left out; gives the exit status."""

    def ended(status: int) -> None:
        raise SystemExit(status)

    def run(does: Callable[[], object], *words: str) -> int:
        monkeypatch.setattr(flows.retrain, "align_retrain", lambda **given: does())
        try:
            return main(["retrain", "r.yaml", *words])
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("flows.commands.run._quieten", lambda: None)
    monkeypatch.setattr("flows.running.ephemeral.keep_from_ctrl_c", lambda: None)
    monkeypatch.setattr("os._exit", ended)
    yield run
    signal.signal(signal.SIGTERM, before)


def decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow's own body, which has come to a decision when Prefect is called in vain."""
    monkeypatch.setattr(flows.retrain, "retrain", lambda asked: Retrained(DECISION))
    monkeypatch.setattr(flows.retrain, "get_run_logger", gone)
    flows.retrain._run({"recipe": "r.yaml"})


def test_a_decision_is_told_though_prefect_is_gone(retrain: Any, monkeypatch: Any, capsys: Any) -> None:
    assert retrain(lambda: decided(monkeypatch)) == 0
    out, err = capsys.readouterr()
    assert out == f"{DECISION.said}\n" and "promoted" in out and "has not heard what was decided" in err
    assert retrain(lambda: decided(monkeypatch), "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "promoted"


def test_a_retraining_that_had_begun_is_no_error_of_the_users(retrain: Any, home: Path, capsys: Any) -> None:
    def trains(status: str) -> None:
        watcher().run_id = "r-1"
        (home / "runs" / "r-1" / "facts.json").write_text(json.dumps({"status": status}))
        gone()

    begun(home, "RUNNING", "ran")
    assert retrain(lambda: trains("RUNNING")) == 1 and "to go on" in capsys.readouterr().err
    assert retrain(lambda: trains("FINISHED")) == 1
    assert "before anything was decided; run the same command again to go on" in capsys.readouterr().err


def test_a_retraining_that_was_interrupted_ends_with_130(retrain: Any, capsys: Any) -> None:
    def interrupted() -> None:
        raise gone_after(KeyboardInterrupt())

    assert retrain(interrupted) == 130 and "interrupted" in capsys.readouterr().err


def test_a_prefect_that_was_never_there_is_said_with_what_to_do(retrain: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert retrain(gone) == 2 and "Prefect can't be reached" in capsys.readouterr().err


def test_a_home_that_can_not_be_written_is_said_before_all_else(retrain: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("ALIGN_HOME", "/dev/null/home")
    assert retrain(gone) == 2 and "$ALIGN_HOME: wanted a folder that can be written" in capsys.readouterr().err
