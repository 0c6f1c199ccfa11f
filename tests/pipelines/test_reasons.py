from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.store import Store
from pipelines.plan import Planned, make_plan
from pipelines.reasons import Verdict, differences, verdicts
from pipelines.recipe import load_recipe
from tests.conftest import chain

PAYLOAD: dict[str, Any] = {
    "uses": "dpo", "version": 1, "seed": 0, "fields": {"beta": 0.1, "lora": {"rank": 8}},
    "inputs": {"policy": "aa", "data": "bb"}, "content": {"source": {"sha256": "11", "format": ".jsonl"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({}, []),
        ({"fields": {"beta": 0.2, "lora": {"rank": 8}}}, ["beta: 0.1 -> 0.2"]),
        ({"fields": {"lora": {"rank": 8}}}, ["beta: 0.1 -> the default"]),
        ({"fields": {"beta": 0.1, "lora": {"rank": 4}}}, ["lora.rank: 8 -> 4"]),
        ({"fields": {"beta": 0.1, "lora": {}}}, ["lora.rank: 8 -> the default", "lora: the default -> {}"]),
        ({"fields": {"beta": 0.1, "lora": {"rank": 8, "target_modules": ["q", "v"]}}},
         ["lora.target_modules: the default -> ['q', 'v']"]),
        ({"seed": 3}, ["seed: 0 -> 3"]),
        ({"version": 2}, ["version: 1 -> 2"]),
        ({"inputs": {"policy": "cc", "data": "bb"}}, ["policy (sft) is another"]),
        ({"inputs": {"policy": "aa", "data": "dd"}}, ["data is another"]),
        ({"content": {"source": {"sha256": "22", "format": ".csv"}}}, ["the content of source changed"]),
    ],
)  # fmt: skip
def test_a_difference_is_named_by_its_field(change: dict[str, Any], phrases: list[str]) -> None:
    assert differences(PAYLOAD, {**PAYLOAD, **change}, {"cc": "sft"}) == phrases


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(chain())


def plan(recipe: Path, store: Store, **overrides: Any) -> dict[str, Planned]:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return {planned.label: planned for planned in make_plan(load_recipe(recipe, given), store).stages}


def verdict(recipe: Path, store: Store, label: str, **overrides: Any) -> Verdict:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return verdicts(make_plan(load_recipe(recipe, given), store), store)[label]


def keep(planned: Planned, store: Store, source_digest: str | None = None) -> None:
    """Put a result for this stage into the store."""
    out = store.draft(planned.uses, planned.key) / "out"
    out.mkdir(parents=True)
    (out / "weights").write_text(planned.key)
    store.commit(
        uses=planned.uses, key=planned.key, kind=planned.handle.kind, payload=planned.payload, fields={}, metrics={},
        seconds=1.0, source_digest=source_digest or planned.stage.source_digest(),
    )  # fmt: skip


def test_what_was_never_run_says_so_and_what_is_there_says_nothing(recipe: Path, store: Store) -> None:
    assert verdict(recipe, store, "dpo") == Verdict(False, "never run")
    keep(plan(recipe, store)["dpo"], store)
    assert verdict(recipe, store, "dpo") == Verdict(True, "", "")


def test_the_nearest_earlier_result_is_the_one_compared_with(recipe: Path, store: Store) -> None:
    keep(plan(recipe, store, dpo__beta=0.5, dpo__epochs=3, dpo__batch_size=4)["dpo"], store)
    keep(plan(recipe, store, dpo__beta=0.3)["dpo"], store)
    keep(plan(recipe, store, dpo__beta=0.5, dpo__epochs=2)["dpo"], store)
    assert verdict(recipe, store, "dpo", dpo__beta=0.4).reason == "beta: 0.3 -> 0.4"


def test_a_stage_that_runs_since_its_input_does_names_that_input(recipe: Path, store: Store) -> None:
    for planned in plan(recipe, store).values():
        keep(planned, store)
    assert verdict(recipe, store, "dpo", sft__epochs=2).reason == "policy (sft) is another"
    assert verdict(recipe, store, "reward", sft__epochs=2).cached


def test_changed_data_is_named(recipe: Path, store: Store) -> None:
    keep(plan(recipe, store)["pairs"], store)
    with (recipe.parent / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "new", "chosen": "a", "rejected": "b"}\n')
    assert verdict(recipe, store, "pairs").reason == "the content of source changed"


def test_settings_without_a_number_are_named_too(recipe: Path, store: Store) -> None:
    keep(plan(recipe, store, reward__lora=None)["reward"], store)
    assert verdict(recipe, store, "reward").reason == "lora: null -> the default"


def test_an_interrupted_stage_says_that_it_goes_on(recipe: Path, store: Store) -> None:
    planned = plan(recipe, store)["dpo"]
    (store.draft("dpo", planned.key) / "work").mkdir(parents=True)
    assert verdict(recipe, store, "dpo").reason == "interrupted earlier; goes on from its last checkpoint"
    with store.lock("dpo", planned.key):
        assert verdict(recipe, store, "dpo").reason == f"process {os.getpid()} makes it now"
    assert verdict(recipe, store, "dpo").reason.startswith("interrupted earlier")


def test_a_damaged_result_is_said_to_be_made_again(recipe: Path, store: Store) -> None:
    planned = plan(recipe, store)["dpo"]
    keep(planned, store)
    (store.folder("dpo", planned.key) / "out" / "weights").unlink()
    assert verdict(recipe, store, "dpo") == Verdict(False, "damaged: weights is missing; will be made again")


def test_a_hit_made_by_other_code_is_announced_with_the_remedy(recipe: Path, store: Store) -> None:
    keep(plan(recipe, store)["dpo"], store, source_digest="of older code")
    found = verdict(recipe, store, "dpo")
    assert found.cached
    assert "bump its version" in found.drift


def test_a_hit_made_with_other_libraries_is_announced(
    recipe: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(plan(recipe, store)["dpo"], store)
    monkeypatch.setattr("pipelines.reasons.library_versions", lambda: {"torch": "99.0"})
    found = verdict(recipe, store, "dpo")
    assert found.cached
    assert found.drift.startswith("made with other libraries: torch ")
    assert found.drift.endswith(" -> 99.0")
