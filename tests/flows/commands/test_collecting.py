"""`align gc`: shows first, removes when told, and keeps what runs, registered models and unfinished runs need."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
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


def test_a_registered_model_stays_whatever_becomes_of_its_run(four, store, capsys):
    client = MlflowClient(f"sqlite:///{store.home / 'mlflow.db'}")
    experiment = client.create_experiment("recipe")
    tags = {"align.key": "d" * 64, "align.uses": "sft"}
    stage_run = client.create_run(experiment, tags=tags).info
    client.create_registered_model("assistant")
    client.create_model_version("assistant", source=stage_run.artifact_uri, run_id=stage_run.run_id)
    assert gc(capsys) == []


def test_a_number_that_is_none_is_refused(home, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gc", "--keep-runs", "many"])
    assert ended.value.code == 2 and "wanted a whole number, got 'many'" in capsys.readouterr().err
