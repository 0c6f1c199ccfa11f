"""What changes a key, and what must not."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.store import Store
from pipelines.plan import Plan, make_plan
from pipelines.recipe import load_recipe
from tests.conftest import ROOT, chain

WriteRecipe = Callable[..., Path]


@pytest.fixture
def plan_of(store: Store) -> Callable[..., Plan]:
    def plan(path: Path, execution: dict[str, Any] | None = None, **overrides: Any) -> Plan:
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        return make_plan(load_recipe(path, given, execution), Store(store.home))

    return plan


def keys(plan: Plan) -> dict[str, str]:
    return {planned.label: planned.key for planned in plan.stages}


def changed(before: Plan, after: Plan) -> set[str]:
    old, new = keys(before), keys(after)
    assert old.keys() == new.keys()
    return {label for label in old if old[label] != new[label]}


@pytest.fixture
def recipe(write_recipe: WriteRecipe) -> Path:
    return write_recipe(chain())


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ({"dpo__beta": 0.2}, {"dpo", "merge", "eval"}),
        ({"sft__learning_rate": 1e-3}, {"sft", "dpo", "merge", "eval"}),
        ({"sft__lora": {"rank": 2}}, {"sft", "dpo", "merge", "eval"}),
        ({"reward__epochs": 2}, {"reward", "eval"}),
        ({"eval__max_new_tokens": 9}, {"eval"}),
        ({"pairs__limit": 3}, {"pairs", "reward", "dpo", "merge", "eval"}),
        ({"base__source": "builtin:tiny-gpt2"}, {"base", "rows", "pairs", "sft", "reward", "dpo", "merge", "eval"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_field_changes_its_stage_and_what_follows(
    recipe: Path, plan_of: Callable[..., Plan], override: dict[str, Any], wanted: set[str]
) -> None:
    assert changed(plan_of(recipe), plan_of(recipe, **override)) == wanted


@pytest.mark.parametrize(
    "override",
    [
        {"dpo__beta": "0.1"},
        {"dpo__beta": 1e-1},
        {"sft__epochs": 1},
        {"sft__epochs": 1.0},
        {"sft__lora": {"rank": 4, "alpha": 32}},
        {"sft__lora": {"rank": 4, "alpha": 32.0, "dropout": 0}},
        {"sft__batch_size": 8},
        {"dpo__learning_rate": "5e-6"},
        {"reward__lora": {}},
        {"name": "another name for the experiment"},
    ],
    ids=str,
)
def test_another_spelling_of_the_same_value_changes_nothing(
    recipe: Path, plan_of: Callable[..., Plan], override: dict[str, Any]
) -> None:
    assert changed(plan_of(recipe), plan_of(recipe, **override)) == set()


@pytest.mark.parametrize(
    "execution",
    [
        {"save_interval": 3},
        {"micro_batch": 2},
        {"threads": 1, "device": "cpu"},
        {"log_interval": 7},
        {"monitor_interval": 0},
    ],
    ids=str,
)
def test_how_a_recipe_runs_is_not_what_it_makes(
    recipe: Path, plan_of: Callable[..., Plan], execution: dict[str, Any]
) -> None:
    assert changed(plan_of(recipe), plan_of(recipe, execution)) == set()


def test_with_dropout_the_micro_batch_is_a_part_of_the_key(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    dropout = {"sft__lora": {"rank": 4, "dropout": 0.1}}
    assert changed(plan_of(recipe, **dropout), plan_of(recipe, {"micro_batch": 2}, **dropout)) == {
        "sft", "dpo", "merge", "eval",
    }  # fmt: skip


def test_the_seed_changes_the_stages_that_draw_numbers_and_what_follows(
    recipe: Path, plan_of: Callable[..., Plan]
) -> None:
    assert changed(plan_of(recipe), plan_of(recipe, seed=1)) == set(chain()["stages"]) - {"base"}
    assert "seed" not in plan_of(recipe)["merge"].payload


def test_neither_the_recipes_name_nor_its_folder_nor_its_labels_matter(
    recipe: Path, write_recipe: WriteRecipe, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    before = plan_of(recipe)
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(recipe.parent, moved)
    (moved / recipe.name).rename(moved / "other.yaml")
    assert changed(before, plan_of(moved / "other.yaml")) == set()

    text = recipe.read_text().replace("dpo:", "tuned:").replace("adapter: dpo", "adapter: tuned")
    renamed = keys(plan_of(write_recipe(text, name="renamed.yaml")))
    assert renamed["tuned"] == keys(before)["dpo"]
    assert renamed["eval"] == keys(before)["eval"]


def test_one_byte_of_a_data_file_changes_its_stage_and_what_follows(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    before = plan_of(recipe)
    pairs = recipe.parent / "pairs.jsonl"
    pairs.write_text(pairs.read_text().replace('"one"', '"onE"', 1))
    assert changed(before, plan_of(recipe)) == {"pairs", "reward", "dpo", "merge", "eval"}


def test_the_name_of_a_data_file_does_not_matter(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    (recipe.parent / "pairs.jsonl").rename(recipe.parent / "renamed.jsonl")
    moved = plan_of(recipe, pairs__source="renamed.jsonl")
    (recipe.parent / "renamed.jsonl").rename(recipe.parent / "pairs.jsonl")
    assert changed(moved, plan_of(recipe)) == set()


def test_recipes_that_begin_alike_share_what_they_have_in_common(
    recipe: Path, write_recipe: WriteRecipe, plan_of: Callable[..., Plan]
) -> None:
    other = chain()
    other["stages"]["second"] = {"uses": "dpo", "policy": "sft", "data": "pairs", "beta": 0.5}
    del other["stages"]["merge"], other["stages"]["eval"]
    ours, theirs = keys(plan_of(recipe)), keys(plan_of(write_recipe(other, name="other.yaml")))
    assert {label for label in theirs if theirs[label] == ours.get(label)} == {
        "base", "rows", "pairs", "sft", "reward", "dpo",
    }  # fmt: skip


def test_a_stage_given_a_new_field_keeps_its_old_keys(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    assert plan_of(recipe)["dpo"].payload["fields"] == {}
    assert plan_of(recipe, dpo__beta=0.3)["dpo"].payload["fields"] == {"beta": 0.3}


def test_library_versions_count_only_when_asked(recipe: Path, store: Store) -> None:
    loaded = load_recipe(recipe)
    lax, strict = make_plan(loaded, store), make_plan(loaded, store, strict_env=True)
    assert changed(lax, strict) == set(chain()["stages"])
    assert "torch" in strict["sft"].payload["versions"]


def walk(value: Any) -> Iterator[Any]:
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


def test_no_path_enters_a_payload(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    for planned in plan_of(recipe).stages:
        assert not [text for text in walk(planned.payload) if isinstance(text, str) and "/" in text]


def test_stages_stand_in_an_order_in_which_they_can_run(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    shuffled = chain()
    shuffled["stages"] = dict(reversed(shuffled["stages"].items()))
    seen: set[str] = set()
    for planned in plan_of(recipe).stages:
        assert set(planned.needs) <= seen
        seen.add(planned.label)


def test_until_keeps_what_the_stage_needs(recipe: Path, plan_of: Callable[..., Plan]) -> None:
    names = {planned.label for planned in plan_of(recipe).until("dpo").stages}
    assert names == {"base", "rows", "pairs", "sft", "dpo"}


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_that_ships_can_be_planned(path: Path, store: Store) -> None:
    recipe = load_recipe(path)
    plan = make_plan(recipe, store)
    assert {planned.label for planned in plan.stages} == set(recipe.stages)
    assert len({planned.key for planned in plan.stages}) == len(plan.stages), "two stages are the same"
    before = copy.deepcopy(keys(plan))
    assert keys(make_plan(load_recipe(path), store)) == before
