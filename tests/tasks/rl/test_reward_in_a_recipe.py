"""`reward` in a recipe: a stage, a program or a mixture, what each is written out as, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from artifacts.errors import RecipeError, UserError
from artifacts.store import Store
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
from tasks.ppo import PPO
from tasks.rl.programs import program_names
from tests.conftest import chain
from tests.tasks.rl.runs import source

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"reward": "rm"}, {"reward": "rm"}),
        ({"reward": "checks"}, {"programs": {"checks": 1.0}}),
        ({"reward": "judge:score"}, {"programs": {"judge:score": 1.0}}),
        ({"reward": "sub/judge.py:score"}, {"programs": {"sub/judge.py:score": 1.0}}),
        ({"reward": {"checks": 2, "judge:score": 0.5}}, {"programs": {"checks": 2, "judge:score": 0.5}}),
        (
            {"reward": {"rm": 0.7, "checks": 0.3}, "lam": 1},
            {"reward": "rm", "reward_weight": 0.7, "programs": {"checks": 0.3}, "lam": 1},
        ),
        ({"reward": {"rm": 2}}, {"reward": "rm", "reward_weight": 2, "programs": {}}),
        ({"reward": None, "programs": {"checks": 1}}, {"reward": None, "programs": {"checks": 1}}),
        ({"reward": {"one": 1, "two": 1}}, {"reward": {"one": 1, "two": 1}}),
        ({}, {}),
    ],
)
def test_the_shorthands_of_reward_written_out(given, wanted):
    assert PPO.spelled_out(given) == wanted


def with_reward(reward: Any) -> dict[str, Any]:
    found = chain()
    found["stages"]["ppo"] = {"uses": "ppo", "policy": "sft", "data": "pairs", "reward": reward}
    return found


@pytest.fixture
def planned(write_recipe: Callable[..., Path], store: Store) -> Callable[[Any], Any]:
    def plan(reward: Any) -> Any:
        path = write_recipe(with_reward(reward))
        source(path.parent, "return [0.0] * len(prompts)")
        return make_plan(load_recipe(path), store)["ppo"]

    return plan


def test_a_recipe_may_name_a_stage_a_program_or_a_mixture(planned):
    model, checks = planned("reward"), planned("checks")
    assert (model.stage.programs, "reward" in model.needs) == ({}, True)
    assert (checks.stage.reward, checks.stage.programs, "reward" in checks.needs) == (None, {"checks": 1.0}, False)
    mixture = planned({"reward": 0.7, "checks": 0.3, "judge:score": 1.5})
    assert (mixture.stage.reward_weight, "reward" in mixture.needs) == (0.7, True)
    assert list(program_names(mixture.stage.programs).values()) == ["checks", "judge:score"]
    assert len({one.key for one in (model, checks, mixture, planned({"checks": 0.5}), planned("judge:score"))}) == 5


def test_one_source_has_one_key_however_it_is_named(planned):
    assert planned("judge:score").key == planned("judge.py:score").key == planned({"judge:score": 1}).key


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        ("rewrad", RecipeError, "ppo.reward: no stage is named 'rewrad'; did you mean 'reward'?"),
        ("sft", RecipeError, "ppo.reward: wanted a reward model, but 'sft' makes an adapter"),
        ({}, RecipeError, "ppo: reward is missing"),
        (None, RecipeError, "ppo: reward is missing"),
        ({"checks": "much"}, RecipeError, "ppo.programs.checks: input should be a valid number"),
        ({"checks": math.nan}, RecipeError, "ppo.programs.checks: "),
        ({"reward": 1, "sft": 1}, RecipeError, "ppo.reward: "),
        ("juge:score", UserError, "ppo: reward: no module 'juge' is in "),
        ("judge:scores", UserError, "defines no 'scores'; it has: score"),
    ],
)
def test_a_reward_that_is_none_ends_the_plan(planned, reward, error, message):
    with pytest.raises(error) as caught:
        planned(reward)
    assert message in str(caught.value)


def test_something_must_be_rewarded(world):
    with pytest.raises(ValidationError, match="reward is missing"):
        PPO.model_validate(world.fields(reward=None))
