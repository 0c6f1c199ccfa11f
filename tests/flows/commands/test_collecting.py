"""`align gc`: shows first, removes when told, and keeps what runs, registered models and unfinished runs need."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from artifacts.store import Store
from flows.cli import main
from flows.records import RunRecord, load_records


def result(store: Store, letter: str) -> Path:
    draft = store.draft("sft", letter * 64)
    (draft / "out").mkdir(parents=True)
    (draft / "out" / "weights").write_text(letter * 100)
    store.commit(
        uses="sft", key=letter * 64, kind="adapter", payload={}, fields={}, metrics={}, seconds=1.0, source_digest=""
    )  # fmt: skip
    return store.folder("sft", letter * 64)


def run(home: Path, name: str, letter: str, *, age: float, status: str = "ran") -> None:
    """A run of one stage, so many days ago."""
    stage = {"name": "sft", "uses": "sft", "key": letter * 64, "status": status, "seconds": 1.0}
    record = RunRecord("recipe.yaml", name, None, None, [stage])
    record.save(home)
    then = time.time() - age * 86_400
    os.utime(record.file(home), (then, then))


def gc(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["gc", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["garbage"]


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [Path(line["path"]).name[:5] for line in lines]


@pytest.fixture
def four(store: Store) -> dict[str, Path]:
    """Results a and b of two runs, c of a run that is not finished, d of none."""
    folders = {letter: result(store, letter) for letter in "abcd"}
    run(store.home, "old", "a", age=30)
    run(store.home, "new", "b", age=1)
    run(store.home, "going", "c", age=2, status="planned")
    return folders


def test_it_shows_and_removes_nothing_until_told(four, capsys):
    assert names(gc(capsys)) == ["sft-d"] and all(path.exists() for path in four.values())
    assert main(["gc"]) == 0
    said = capsys.readouterr().out
    assert "no kept run refers to it" in said and "nothing removed yet: add --yes" in said
    (line,) = gc(capsys, "--yes")
    assert line["removed"] and not four["d"].exists()
    assert [letter for letter, path in four.items() if path.exists()] == ["a", "b", "c"]
    assert main(["gc"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_older_runs_are_forgotten_with_what_only_they_need_but_not_one_that_may_be_going_on(four, store, capsys):
    assert names(gc(capsys, "--keep-runs", "1", "--yes")) == ["sft-a", "sft-d"]
    assert [record.run_id for record in load_records(store.home)] == ["new", "going"]
    run(store.home, "going", "c", age=20, status="planned")
    assert names(gc(capsys, "--keep-runs", "1", "--yes")) == ["sft-c"]


def test_a_registered_model_stays_whatever_becomes_of_its_run(four, registry, capsys):
    experiment = registry.create_experiment("recipe")
    tags = {"align.key": "d" * 64, "align.uses": "sft"}
    stage_run = registry.create_run(experiment, tags=tags).info
    registry.create_registered_model("assistant")
    registry.create_model_version("assistant", source=stage_run.artifact_uri, run_id=stage_run.run_id)
    assert gc(capsys) == []


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_nothing_goes_while_mlflow_does_not_say_what_is_registered(four, registry, capsys, monkeypatch, yes):
    registry.create_registered_model("assistant")
    registry.create_model_version("assistant", source="runs:/r/output", run_id="r")

    def busy(self, run_id):
        raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(MlflowClient, "get_run", busy)
    assert main(["gc", *yes]) == 2
    assert "database is locked" in capsys.readouterr().err and all(path.exists() for path in four.values())


def test_a_version_whose_run_is_gone_for_good_keeps_nothing(four, registry, capsys):
    registry.create_registered_model("assistant")
    registry.create_model_version("assistant", source="runs:/r/output", run_id="r")
    assert names(gc(capsys)) == ["sft-d"]


def test_an_mlflow_that_does_not_answer_is_named_without_its_password(four, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-4f6c@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["gc", "--yes"]) == 2
    err = capsys.readouterr().err
    assert "127.0.0.1:9" in err and "planted" not in err and all(path.exists() for path in four.values())


def test_a_number_that_is_none_is_refused(home, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gc", "--keep-runs", "many"])
    assert ended.value.code == 2 and "wanted a whole number, got 'many'" in capsys.readouterr().err
