"""What a user may get wrong with PPO, and what is said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from artifacts.errors import DataError, ModelError, RecipeError, UserError
from artifacts.store import Store
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
from tasks.ppo import PPO
from tests.conftest import chain
from tests.tasks.rl.runs import (
    base_in,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_prompt_that_leaves_no_room_is_named(world, tmp_path):
    with pytest.raises(DataError, match=r"row \d+: its prompt of \d tokens leaves no room for max_new_tokens 60"):
        run(tmp_path, **world.fields(max_new_tokens=60))


def test_a_stop_token_of_several_tokens_is_refused_before_training(world, tmp_path):
    with pytest.raises(ModelError, match="stop_token"):
        run(tmp_path, **world.fields(stop_token="ab"))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_minibatches_must_divide_the_batch(world):
    with pytest.raises(ValidationError, match="num_mini_batches: wanted a divisor of batch_size 4, got 3"):
        PPO.model_validate(world.fields(num_mini_batches=3))


@pytest.mark.parametrize("given", [{"ptx_coef": 0.5}, {"ptx_data": "demonstrations"}])
def test_the_sft_term_needs_weight_and_data(world, with_data, given):
    with pytest.raises(ValidationError, match="ptx_coef and ptx_data go together"):
        PPO.model_validate(world.fields(**with_data(given)))


def test_a_reward_model_on_another_base_is_refused_at_plan_time(world, tmp_path):
    other = base_in(tmp_path / "other", seed=3)
    stage = PPO.model_validate(world.fields(reward=world.reward.model_copy(update={"base": other})))
    assert "give the stage that makes it the same base" in (stage.input_problem() or "")
    assert PPO.model_validate(world.fields()).input_problem() is None


def recipe(**fields: Any) -> dict[str, Any]:
    """The chain with PPO after it."""
    found = chain()
    found["stages"]["ppo"] = {"uses": "ppo", "policy": "sft", "data": "pairs", "reward": "reward", **fields}
    return found


@pytest.fixture
def problems(write_recipe: Callable[..., Path], store: Store) -> Callable[..., list[str]]:
    def found(**fields: Any) -> list[str]:
        path = write_recipe(recipe(**fields))
        with pytest.raises(RecipeError) as caught:
            make_plan(load_recipe(path), store)
        return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]

    return found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_kl_coef": 0.2}, "ppo.init_kl_coef: no such field; write kl_coef: 0.2"),
        ({"target": 6}, "ppo.target: no such field; write target_kl: 6"),
        ({"ppo_epochs": 4}, "ppo.ppo_epochs: no such field; write num_ppo_epochs: 4"),
        (
            {"mini_batch_size": 8, "batch_size": 64},
            "ppo.mini_batch_size: no such field; write num_mini_batches: 8 (batch_size 64 in minibatches of 8)",
        ),
        ({"mini_batch_size": 8}, "num_mini_batches: 4 (batch_size 32 in minibatches of 8)"),
        ({"mini_batch_size": 7}, "num_mini_batches: the number of optimizer steps in a pass"),
        ({"adap_kl_ctrl": True}, "ppo.adap_kl_ctrl: no such field; write kl_controller: adaptive"),
        ({"adap_kl_ctrl": False}, "write kl_controller: fixed"),
        ({"steps": 20_000}, "write total_episodes: 640000"),
        ({"reward_model": "reward"}, "write reward: reward"),
        ({"klcoef": 0.2}, "ppo.klcoef: no such field; did you mean 'kl_coef'?"),
        ({"num_mini_batches": 5}, "ppo: num_mini_batches: wanted a divisor of batch_size 32, got 5"),
        ({"cliprange": 0}, "ppo.cliprange: input should be greater than 0, got 0"),
        ({"lora": {}}, "ppo: lora must be left out"),
        ({"ptx_coef": 0.5, "ptx_data": "pairs"}, "ppo.ptx_data: wanted demonstrations, but 'pairs' makes preferences"),
        ({"mask_truncated": True, "stop_token": None}, "ppo: mask_truncated"),  # nothing at all would be learned
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_one_thing_wrong(problems, fields, message):
    (line,) = problems(**fields)
    assert message in line


def test_a_number_that_is_not_finite_is_the_users_mistake(write_recipe, store):
    with pytest.raises(UserError, match="learning_rate"):
        make_plan(load_recipe(write_recipe(recipe(learning_rate=math.inf))), store)


def test_the_classic_configuration_is_translated_whole(problems):
    lines = problems(init_kl_coef=0.2, target=6, ppo_epochs=4, mini_batch_size=4, batch_size=16, adap_kl_ctrl=True)
    assert [line.partition("; write ")[2].split(" (")[0] for line in lines] == [
        "kl_coef: 0.2", "target_kl: 6", "num_ppo_epochs: 4", "num_mini_batches: 4", "kl_controller: adaptive",
    ]  # fmt: skip


def test_a_reward_model_from_another_base_ends_the_plan(write_recipe, store):
    found = recipe(reward="stranger")
    found["stages"] |= {
        "gpt2": {"uses": "base", "source": "builtin:tiny-gpt2"},
        "theirs": {"uses": "data", "base": "gpt2", "form": "preferences", "source": "pairs.jsonl"},
        "stranger": {"uses": "reward", "base": "gpt2", "data": "theirs"},
    }
    with pytest.raises(UserError, match="ppo: reward: wanted one made for the policy's base"):
        make_plan(load_recipe(write_recipe(found)), store)


@pytest.mark.parametrize("field", ["data", "ptx_data"])
def test_data_rendered_for_another_base_ends_the_plan(write_recipe, store, field):
    """Its token ids mean other words there."""
    found = recipe(**{field: "theirs", **({"ptx_coef": 0.1} if field == "ptx_data" else {})})
    form, source = ("preferences", "pairs.jsonl") if field == "data" else ("demonstrations", "rows.jsonl")
    found["stages"] |= {
        "gpt2": {"uses": "base", "source": "builtin:tiny-gpt2"},
        "theirs": {"uses": "data", "base": "gpt2", "form": form, "source": source},
    }
    with pytest.raises(UserError, match=f"ppo: {field}: "):
        make_plan(load_recipe(write_recipe(found)), store)


def test_a_complete_policy_and_a_reward_model_of_another_tokenizer_are_refused(worlds, world, tmp_path):
    """Such a policy may be a full fine-tune of the reward model's base, so keys can't tell; the vocabularies can."""
    stage = world.fields(policy=base_in(tmp_path / "other", "gpt2", seed=4))
    tokenizer = stage["policy"].path / "tokenizer.json"
    text = json.loads(tokenizer.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.write_text(json.dumps(text))
    with pytest.raises(UserError):
        run(tmp_path / "run", **stage)
