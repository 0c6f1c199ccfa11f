"""Stages that are made afresh though they are cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import RecipeError, UserError
from artifacts.store import Store
from pipelines.plan import Plan, Planned, make_plan
from pipelines.recipe import load_recipe
from tests.conftest import chain

Planning = Callable[..., Plan]


@pytest.fixture
def planned(write_recipe: Callable[..., Path], store: Store) -> Planning:
    path = write_recipe(chain())

    def plan(*refresh: str, sweep: dict[str, list[Any]] | None = None, **overrides: Any) -> Plan:
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        return make_plan(load_recipe(path, given, None, sweep), store, refresh=refresh)

    return plan


def finish(planned: Planned, store: Store) -> None:
    store.folder(planned.uses, planned.key).mkdir(parents=True)


def keys(plan: Plan) -> dict[str, str]:
    return {each.label: each.key for each in plan.stages}


def test_a_refreshed_stage_and_what_follows_have_other_keys(planned: Planning) -> None:
    before, after = keys(planned()), keys(planned("sft"))
    assert {name for name in before if before[name] != after[name]} == {"sft", "dpo", "merge", "eval"}


def test_one_that_was_begun_goes_on_and_one_that_was_finished_begins_again(planned: Planning, store: Store) -> None:
    begun = planned("sft")["sft"]
    store.draft(begun.uses, begun.key).mkdir(parents=True)
    assert planned("sft")["sft"].key == begun.key
    finish(begun, store)
    again = planned("sft")["sft"]
    assert (begun.payload["refresh"], again.payload["refresh"]) == (1, 2)


def test_its_number_names_the_result_again(planned: Planning, store: Store) -> None:
    made = planned("sft")
    finish(made["sft"], store)
    assert keys(planned(sft__refresh=1)) == keys(made)
    assert planned("sft", sft__refresh=1)["sft"].payload["refresh"] == 2
    assert keys(planned(sft__refresh=0)) == keys(planned())


def test_of_a_swept_stage_all_branches_are_made_afresh(planned: Planning) -> None:
    sweep = {"dpo.beta": [0.1, 0.2]}
    before, after = keys(planned(sweep=sweep)), keys(planned("dpo", sweep=sweep))
    assert {name for name in before if name.startswith("dpo@") and before[name] == after[name]} == set()


def test_each_branch_is_found_again_under_the_number_that_it_got(planned: Planning, store: Store) -> None:
    sweep = {"dpo.beta": [0.1, 0.2]}
    finish(planned("dpo", sweep=sweep)["dpo@beta=0.1"], store)
    made = planned("dpo", sweep=sweep)
    numbers = {each.label: each.payload["refresh"] for each in made.stages if "refresh" in each.payload}
    assert numbers == {"dpo@beta=0.1": 2, "dpo@beta=0.2": 1}
    assert keys(planned(sweep=sweep).numbered(numbers, store)) == keys(made)


def test_what_is_wrong_is_said(planned: Planning) -> None:
    with pytest.raises(UserError, match="--refresh: no stage is named 'dop'; did you mean 'dpo'"):
        planned("dop")
    with pytest.raises(RecipeError, match=r"sft\.refresh: wanted a whole number, 0 or more, got 'yes'"):
        planned(sft__refresh="yes")
