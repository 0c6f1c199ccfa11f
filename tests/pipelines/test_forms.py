"""The recipe behind a form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UserError
from artifacts.store import Store
from pipelines.forms import Form, methods, needed_data, recipe_of
from pipelines.plan import Plan, make_plan
from pipelines.recipe import load_recipe
from tests.conftest import ROOT

FILES = ROOT / "pipelines" / "quickstart_data"
SOURCES = {
    "instructions": str(FILES / "instructions.jsonl"), "pairs": str(FILES / "preferences.jsonl"),
    "feedback": str(FILES / "preferences.jsonl"),
}  # fmt: skip
FORM = Form(base="builtin:tiny-llama", sources=SOURCES, split_pairs=True)


@pytest.fixture
def plan(write_recipe: Callable[..., Path], store: Store) -> Callable[[dict[str, Any]], Plan]:
    return lambda recipe: make_plan(load_recipe(write_recipe(recipe)), store)


def form_of(uses: str, **other: Any) -> Form:
    """With only the files that the method can't do without."""
    return replace(FORM, sources={label: SOURCES[label] for label in needed_data(uses)}, **other)


@pytest.mark.parametrize("weights", ["adapters", "all"])
@pytest.mark.parametrize("start", ["sft", "base"])
@pytest.mark.parametrize("uses", methods())
def test_every_method_has_a_form_that_plans(uses: str, start: str, weights: str, plan: Callable[..., Plan]) -> None:
    recipe = recipe_of({uses: {}}, form_of(uses, start=start, weights=weights), name="align")
    stages = plan(recipe).stages
    whole = {each.label for each in stages if each.uses == "merge"} == set()
    assert whole == (weights == "all" or uses == "reward")
    assert (f"eval_{uses}" in recipe["stages"]) == (uses != "reward")


def test_a_form_asks_only_for_what_its_method_needs() -> None:
    asked = {uses: needed_data(uses) for uses in ("sft", "reward", "dpo", "kto", "ppo")}
    assert asked == {
        "sft": ["instructions"], "reward": ["pairs"], "dpo": ["instructions", "pairs"],
        "kto": ["instructions", "feedback"], "ppo": ["instructions", "pairs"],
    }  # fmt: skip


def test_dpo_is_measured_against_the_sft_that_it_starts_from_and_that_against_the_base() -> None:
    stages = recipe_of({"dpo": {"beta": 0.3}}, form_of("dpo"), name="align")["stages"]
    assert stages["dpo"] == {"uses": "dpo", "policy": "sft", "data": "pairs", "beta": 0.3}
    assert stages["eval_sft"].items() >= {"policy": "sft", "reference": "base", "against": "eval_base"}.items()
    assert stages["eval_dpo"].items() >= {"policy": "merge", "reference": "sft", "against": "eval_sft"}.items()
    assert {stages[each]["reward"] for each in ("eval_base", "eval_sft", "eval_dpo")} == {"reward"}


def test_several_methods_share_one_sft_and_are_not_merged(plan: Callable[..., Plan]) -> None:
    recipe = recipe_of({uses: {} for uses in ("orpo", "kto", "dpo", "sft")}, FORM, name="align")
    assert [each.uses for each in plan(recipe).stages].count("sft") == 1
    assert {recipe["stages"][uses]["policy"] for uses in ("orpo", "kto", "dpo")} == {"sft"}
    assert "merge" not in recipe["stages"]


def test_all_weights_train_without_adapters_from_a_base_on(plan: Callable[..., Plan]) -> None:
    stages = recipe_of({"dpo": {}}, form_of("dpo", weights="all"), name="align")["stages"]
    assert stages["sft"]["lora"] is None and "lora" not in stages["dpo"]


EARLIER: dict[str, dict[str, Any]] = {
    "smollm": {"uses": "base", "source": "builtin:tiny-llama"},
    "rows": {"uses": "data", "base": "smollm", "form": "demonstrations", "source": SOURCES["instructions"]},
    "pairs": {"uses": "data", "base": "smollm", "form": "preferences", "source": SOURCES["pairs"], "limit": 40},
    "sft": {"uses": "sft", "base": "smollm", "data": "rows", "learning_rate": 1e-3},
    "rm": {"uses": "reward", "base": "smollm", "data": "pairs", "epochs": 2},
    "dpo": {"uses": "dpo", "policy": "sft", "data": "pairs", "beta": 0.5},
    "tuned": {"uses": "ppo", "policy": "dpo", "data": "pairs", "reward": {"rm": 0.3, "checks": 1.0}},
}


def test_from_an_earlier_run_comes_what_it_has_with_its_keys(plan: Callable[..., Plan]) -> None:
    earlier = plan({"stages": EARLIER})
    form = Form(base="another", sources={}, earlier=EARLIER)
    planned = plan(recipe_of({"ppo": {}}, form, name="align"))
    for label in ("smollm", "rows", "pairs", "sft", "rm"):
        assert planned[label].key == earlier[label].key
    assert planned["ppo"].needs == ("sft", "pairs", "rm")


def test_one_can_start_from_any_stage_of_it_weights_of_rewards_and_all(plan: Callable[..., Plan]) -> None:
    form = Form(base="another", sources={}, earlier=EARLIER, start="tuned")
    recipe = recipe_of({"dpo": {}}, form, name="align")
    assert recipe["stages"]["dpo_again"]["policy"] == "tuned"
    assert plan(recipe)["tuned"].key == plan({"stages": EARLIER})["tuned"].key


def test_what_an_earlier_run_lacks_the_form_gives(plan: Callable[..., Plan]) -> None:
    form = Form(base="x", sources={"feedback": SOURCES["feedback"]}, split_pairs=True, earlier=EARLIER)
    stages = recipe_of({"kto": {}}, form, name="align")["stages"]
    assert (stages["feedback"]["source"], stages["feedback"]["base"]) == (SOURCES["feedback"], "smollm")


def test_a_form_that_can_t_be_a_recipe_says_what_it_lacks() -> None:
    with pytest.raises(UserError, match="pairs: wanted a file of preferences, got none"):
        recipe_of({"dpo": {}}, replace(FORM, sources={"instructions": "a file"}), name="align")
    with pytest.raises(UserError, match="start: wanted `sft`, `base`, or a stage of the earlier run, got 'spo'"):
        recipe_of({"dpo": {}}, replace(FORM, start="spo"), name="align")
