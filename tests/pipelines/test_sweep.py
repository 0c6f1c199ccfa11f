"""A sweep's branches: which stages are copied and which are shared, what they are called, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import RecipeError
from artifacts.store import Store
from pipelines.assignments import parse_overrides
from pipelines.plan import Plan, make_plan
from pipelines.recipe import load_recipe
from tests.conftest import chain


@pytest.fixture
def plan(write_recipe: Callable[..., Path], store: Store) -> Callable[..., Plan]:
    """The plan of the chain with overrides as a command line has them."""
    recipe = write_recipe(chain())

    def made(*words: str, **more: Any) -> Plan:
        overrides, sweep = parse_overrides(words)
        return make_plan(load_recipe(recipe, overrides, None, sweep, **more), store)

    return made


def labels(plan: Plan) -> list[str]:
    return [planned.label for planned in plan.stages]


def test_only_what_hangs_on_a_value_is_copied(plan):
    swept, plain = plan("dpo.beta=0.05|0.1"), plan("dpo.beta=0.05")
    assert labels(swept) == [
        "base", "rows", "pairs", "sft", "reward", "dpo@beta=0.05", "dpo@beta=0.1", "merge@beta=0.05",
        "merge@beta=0.1", "eval@beta=0.05", "eval@beta=0.1",
    ]  # fmt: skip
    assert swept["sft"].key == plain["sft"].key and swept["reward"].key == plain["reward"].key
    assert swept["merge@beta=0.05"].key == plain["merge"].key != swept["merge@beta=0.1"].key
    assert swept["dpo@beta=0.1"].needs == plain["dpo"].needs


def test_the_product_of_two_fields_shares_what_hangs_on_one_of_them(plan):
    swept = plan("sft.lora.rank=4|8", "dpo.beta=0.05|0.1|0.3")
    found = labels(swept)
    assert [label for label in found if label.startswith("sft")] == ["sft@rank=4", "sft@rank=8"]
    assert [label for label in found if label.startswith("dpo")] == [
        f"dpo@rank={rank},beta={beta}" for rank in (4, 8) for beta in (0.05, 0.1, 0.3)
    ]
    assert found.count("reward") == 1
    assert swept["dpo@rank=8,beta=0.3"].needs == ("sft@rank=8", "pairs")
    one = plan("sft.lora.rank=8", "dpo.beta=0.3")
    assert swept["dpo@rank=8,beta=0.3"].key == one["dpo"].key


def test_seeds_of_two_stages_are_no_product(plan):
    """A seed of its own makes another result of that stage alone; what stands beside it stays as it is."""
    swept = plan("dpo.seed=0|1|2", "reward.seed=0|1")
    assert len([label for label in labels(swept) if label.startswith("dpo")]) == 3
    assert len([label for label in labels(swept) if label.startswith("reward")]) == 2
    assert swept["dpo@seed=0"].key == plan()["dpo"].key
    assert len({swept[f"dpo@seed={seed}"].key for seed in (0, 1, 2)}) == 3
    assert "eval@dpo.seed=2,reward.seed=1" in labels(swept)  # this one hangs on both
    assert plan("dpo.seed=1")["dpo"].seed == 1 and plan("dpo.seed=1")["sft"].seed == 0
    assert plan("seed=3")["dpo"].seed == 3 and plan("seed=3", "dpo.seed=1")["dpo"].seed == 1


def scored(weights: Any) -> dict[str, Any]:
    """The chain with a PPO that has two rewards."""
    recipe = chain()
    recipe["stages"]["ppo"] = {"uses": "ppo", "policy": "sft", "data": "pairs", "reward": weights}
    return recipe


@pytest.mark.parametrize("word", ["dpo.beta=0.05|0.1", "ppo.kl_coef=0.05|0.1", "sft.epochs=1|2"])
def test_a_reward_written_short_keeps_its_weights_in_every_branch(write_recipe, store, word):
    recipe = write_recipe(scored({"reward": 0.3, "checks": 3.0}))
    overrides, sweep = parse_overrides([word])
    swept = make_plan(load_recipe(recipe, overrides, None, sweep), store)
    first, _, value = word.partition("|")[0].partition("=")
    plain = make_plan(load_recipe(recipe, {first: float(value) if "." in value else int(value)}), store)
    found = [planned for planned in swept.stages if planned.uses == "ppo"]
    assert all(planned.stage.settings()["programs"] == {"checks": 3.0} for planned in found)
    assert all(planned.stage.settings()["reward_weight"] == 0.3 for planned in found)
    assert plain["ppo"].key in {planned.key for planned in found}


def test_a_rewards_weight_is_a_value_like_any_other(write_recipe, store):
    recipe = write_recipe(scored({"reward": 0.3, "checks": 3.0}))
    swept = make_plan(load_recipe(recipe, {}, None, {"ppo.reward.checks": [1.0, 3.0]}), store)
    weights = {planned.label: planned.stage.settings()["programs"] for planned in swept.stages if planned.uses == "ppo"}
    assert weights == {"ppo@checks=1.0": {"checks": 1.0}, "ppo@checks=3.0": {"checks": 3.0}}
    with pytest.raises(RecipeError, match="an input has one value"):
        load_recipe(write_recipe(scored("reward"), name="other.yaml"), {}, None, {"ppo.reward.checks": [1.0, 3.0]})


def test_a_method_is_a_value_like_any_other(plan):
    assert {planned.uses for planned in plan("dpo.uses=dpo|simpo").stages if planned.label.startswith("dpo")} == {
        "dpo", "simpo"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("x.y=0.1|0.3", [0.1, 0.3]),
        ("x.y=[1,2]|[3]", [[1, 2], [3]]),
        ("x.y=.*(q_proj|v_proj)|all-linear", [".*(q_proj|v_proj)", "all-linear"]),
        ("x.y=null|{rank: 4}", [None, {"rank": 4}]),
    ],
)
def test_bars_divide_values_but_not_within_brackets(word, values):
    assert parse_overrides([word]) == ({}, {"x.y": values})


@pytest.mark.parametrize(
    "word", ["x.y='q_proj|v_proj'", "x.y=(a|b)", 'x.y="|"', "x.y=<|pad|>", 'x.y=["<|a|>", "<|b|>"]']
)
def test_a_bar_in_quotes_or_brackets_is_no_sweep(word):
    overrides, sweep = parse_overrides([word])
    assert not sweep and "|" in str(overrides["x.y"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dpo.betta=1|2"], r"dpo\.betta: no such field; did you mean 'beta'"),
        (["dpp.beta=1|2"], r"dpp\.beta: no stage is named 'dpp'; did you mean 'dpo'"),
        (["dpo.beta=0.1|no"], r"dpo\.beta: .*got 'no'|dpo\.beta: .*no true or false"),
        (["dpo.beta=0.1|0.1"], r"dpo\.beta: wanted values that differ, got 0\.1 \| 0\.1"),
        (["seed=1|2"], "seed: wanted stage.field"),
        (["dpo.policy=sft|base"], r"dpo\.policy: an input has one value"),
        (["dpo.seed=1|-2"], r"dpo\.seed: wanted a whole number, 0 or more, got -2"),
        (["merge.seed=1|2"], r"merge\.seed: merge draws nothing at random"),
        (["dpo.beta=1|2|3", "sft.epochs=1|2|3|4|5|6"], "wanted at most 16 branches, got 18; .*--yes"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_once(plan, words, said):
    with pytest.raises(RecipeError, match=said) as caught:
        plan(*words)
    assert len(str(caught.value).splitlines()) == 1


def test_more_branches_are_made_when_that_is_asked_for(plan):
    swept = plan("dpo.beta=1|2|3", "sft.epochs=1|2|3|4|5|6", max_branches=18)
    assert len([label for label in labels(swept) if label.startswith("dpo@")]) == 18


def test_until_takes_all_branches_of_a_stage_or_one(plan):
    swept = plan("dpo.beta=0.05|0.1")
    assert labels(swept.until("dpo"))[-2:] == ["dpo@beta=0.05", "dpo@beta=0.1"]
    assert "dpo@beta=0.05" not in labels(swept.until("merge@beta=0.1"))
