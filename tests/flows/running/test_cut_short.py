"""A run that can't be written down to its end; and a flow's failure, which Prefect keeps, without secrets."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import AlignError, StageError, UserError
from artifacts.store import Store
from flows.commands.planning import Wanted
from flows.records import RunRecord, load_records
from flows.running import stages
from flows.running.execute import StageResult
from flows.running.run_folder import RunFolder
from pipelines.plan import Planned
from tests.conftest import chain

SECRET = "planted-4f6c"


@pytest.fixture
def run(store: Store, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A run without Prefect, whose first stage fails."""

    def fails(planned: Planned, *rest: Any) -> StageResult:
        raise StageError(f"{planned.label}: no")

    monkeypatch.setattr(stages, "_run_stage", fails)
    monkeypatch.setattr(stages, "guard_ephemeral_servers", lambda: None)
    return lambda: stages.run_stages(Wanted(write_recipe(chain())), offline_tracking=True)


def full(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Let the disk be full at that function's call `after` so many."""
    calls: list[int] = []
    real = getattr(owner, name)

    def call(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device", "r.json")
        return real(*args, **named)

    monkeypatch.setattr(owner, name, call)


def status(home: Path) -> str:
    (record,) = load_records(home)
    facts = RunFolder(home, record.run_id).facts
    assert facts is not None
    return str(facts["status"])


def test_a_disk_that_fills_midway_is_said_and_the_run_no_longer_looks_as_if_it_went_on(
    run: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, RunRecord, "save", after=1)
    with pytest.raises(StageError, match=r"(?s)base: no\nrecipe-.*: what became of it can't be kept: .*No space left"):
        run()
    assert status(store.home) == "KILLED"


def test_so_is_one_that_fills_when_all_is_done(run: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, stages, "conclude", after=0)
    with pytest.raises(StageError, match=r"No space left on device.*to go on"):
        run()
    assert status(store.home) == "KILLED"
    assert load_records(store.home)[0].stages[0]["status"] == "failed"


def test_a_run_that_had_ended_stays_so(run: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    conclude = stages.conclude

    def interrupted(*args: Any) -> str:
        conclude(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "conclude", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert status(store.home) == "FAILED"


@pytest.mark.parametrize("kind", [UserError, StageError])
def test_no_secret_is_in_what_prefect_keeps_of_a_failure(kind: type[AlignError]) -> None:
    address = f"http://me:{SECRET}@mlflow:80"

    def fails() -> Any:
        try:
            raise OSError(f"{address} can't be reached")
        except OSError as error:
            raise kind(f"MLflow at {address}: no") from error

    with pytest.raises(kind) as caught:
        stages.answer(fails)
    assert str(caught.value) == "MLflow at http://mlflow:80: no"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_prefects_log_of_the_flow_run_has_what_is_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("flow run")
    said: list[str] = []
    monkeypatch.setattr(logger, "info", lambda form, *words: said.append(form % words))
    monkeypatch.setattr(stages, "get_run_logger", lambda: logger)
    with pytest.raises(StageError, match="base: no"):
        stages.answer(run)
    assert any(line.startswith("base: failed") for line in said)
