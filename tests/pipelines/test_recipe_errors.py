"""Everything that is wrong is said at once: where, what was wanted, what was got, and what was perhaps meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.errors import DataError, RecipeError, UserError
from artifacts.store import Store
from pipelines.assignments import parse_assignments
from pipelines.plan import Plan, make_plan
from pipelines.recipe import load_recipe
from tests.conftest import chain

WriteRecipe = Callable[..., Path]


@pytest.fixture
def problems(write_recipe: WriteRecipe, store: Store) -> Callable[..., list[str]]:
    """The lines of the error, without the recipe's path, which each of them must begin with."""

    def found(recipe: Any, execution: dict[str, Any] | None = None, **overrides: Any) -> list[str]:
        path = write_recipe(recipe)
        given = {name.replace("__", "."): value for name, value in overrides.items()}
        with pytest.raises(RecipeError) as caught:
            make_plan(load_recipe(path, given, execution), store)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(str(path)) for line in lines)
        return [line.removeprefix(f"{path}: ") for line in lines]

    return found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dpo__betta": 0.1}, "dpo.betta: no such field; did you mean 'beta'?"),
        ({"dpo__lr": 0.1}, "dpo.lr: no such field; did you mean 'learning_rate'?"),
        ({"sft__lora": {"rnak": 8}}, "sft.lora.rnak: no such field; did you mean 'rank'?"),
        ({"merge__zzz": 1}, "merge.zzz: no such field; the fields here are adapter, data, prompts"),
        ({"dpo__beta": "much"}, "dpo.beta: input should be a valid number, unable to parse string as a number, got "
         "'much'"),
        ({"dpo__beta": 0}, "dpo.beta: input should be greater than 0, got 0"),
        ({"dpo__beta": [0.1]}, "dpo.beta: input should be a valid number, got [0.1]"),
        ({"sft__batch_size": 2.5}, "sft.batch_size: input should be a valid integer"),
        ({"rows__form": "demos"}, "rows.form: input should be 'demonstrations', 'preferences' or 'feedback', got "
         "'demos'"),
        ({"sft__lora": {"target_modules": 5}}, "sft.lora.target_modules: input should be 'all-linear', or input should "
         "be a valid string, or input should be a valid list, got 5"),
        ({"sft__lora": {"target_modules": "("}}, "sft.lora.target_modules: wanted a regular expression, got '(': "),
        ({"rows__split_pairs": True}, "rows: split_pairs wants `form: feedback`"),
        ({"dpo__uses": "kto"}, "dpo.data: wanted feedback, but 'pairs' makes preferences; stages here that fit: none "
         "(`form: feedback` of a data stage makes it, of pairs with `split_pairs: true`)"),
        ({"dpo__policy": "sfd"}, "dpo.policy: no stage is named 'sfd'; did you mean 'sft'?"),
        ({"dpo__policy": 3}, "dpo.policy: wanted the name of a stage, got 3"),
        ({"dpo__policy": None}, "dpo.policy: missing; wanted the name of a stage that makes a model"),
        ({"dpo__data": "rows"}, "dpo.data: wanted preferences, but 'rows' makes demonstrations; stages here that "
         "fit: pairs"),
        ({"merge__adapter": "base"}, "merge.adapter: wanted an adapter, but 'base' makes a checkpoint; stages here "
         "that fit: sft, dpo"),
        ({"eval__reward": "dpo"}, "eval.reward: wanted a reward model, but 'dpo' makes an adapter; stages here "
         "that fit: reward"),
        ({"dpo__lora": {}}, "dpo: lora must be left out"),
        ({"dpo__uses": "dop"}, "dpo.uses: wanted one of base, quantize, data, "),
        ({"dpo__uses": "dop"}, "got 'dop'; did you mean 'dpo'?"),
        ({"dpo__uses": ["dpo"]}, "dpo.uses: wanted one of base, quantize, data, "),
        ({"dpo__uses": None}, "dpo.uses: missing; wanted one of base, quantize, data, "),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, got -1"),
        ({"sed": 1}, "sed: wanted stage.field=value; did you mean 'seed'?"),
        ({"dop__beta": 1}, "dop.beta: no stage is named 'dop'; did you mean 'dpo'?"),
    ],
    ids=lambda value: "; ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)  # fmt: skip
def test_one_thing_wrong(problems: Callable[..., list[str]], overrides: dict[str, Any], message: str) -> None:
    (line,) = problems(chain(), **overrides)
    assert message in line


def test_a_missing_input_says_what_it_wants(problems: Callable[..., list[str]]) -> None:
    recipe = chain()
    del recipe["stages"]["dpo"]["policy"], recipe["stages"]["rows"]["form"]
    assert problems(recipe) == [
        "dpo.policy: missing; wanted the name of a stage that makes a model",
        "rows.form: missing, and it has no default",
    ]


def test_every_problem_is_in_one_error(problems: Callable[..., list[str]]) -> None:
    lines = problems(
        {**chain(), "sede": 1}, {"thraeds": 2},
        dpo__betta=0.2, sft__batch_size="many", merge__adapter="base", reward__data="rows", eval__uses="evalute",
    )  # fmt: skip
    assert {line.split(":")[0] for line in lines} == {
        "sede", "execution.thraeds", "dpo.betta", "sft.batch_size", "merge.adapter", "reward.data", "eval.uses",
    }  # fmt: skip


def test_a_cycle_is_shown(problems: Callable[..., list[str]]) -> None:
    lines = problems(chain(), sft__base="merge")
    assert lines == [
        "sft -> merge -> dpo -> sft: these stages wait for each other; an input must come from an earlier stage"
    ]


def test_a_stage_that_waits_for_itself_is_a_cycle(problems: Callable[..., list[str]]) -> None:
    assert problems(chain(), dpo__policy="dpo")[0].startswith("dpo -> dpo: ")


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ({"thread": 2}, "execution.thread: no such field; did you mean 'threads'?"),
        ({"threads": 0}, "execution.threads: input should be greater than or equal to 1, got 0"),
        ({"device": "tpu"}, "execution.device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    ],
    ids=str,
)
def test_an_unknown_way_to_run(problems: Callable[..., list[str]], execution: dict[str, Any], message: str) -> None:
    assert problems(chain(), execution) == [message]


def test_a_micro_batch_that_does_not_divide_a_batch_is_named_with_its_stage(
    problems: Callable[..., list[str]],
) -> None:
    assert problems(chain(), {"micro_batch": 3}, dpo__batch_size=6) == [
        "sft: wanted execution.micro_batch to divide batch_size 8, got 3",
        "reward: wanted execution.micro_batch to divide batch_size 8, got 3",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wanted a mapping with `stages:`, got NoneType"),
        ("- a\n- b\n", "wanted a mapping with `stages:`, got list"),
        ("just words", "wanted a mapping with `stages:`, got str"),
        ("stages: {a: [}", "not valid YAML: "),
        ("\tstages: 1", "not valid YAML: "),
        ("seed: 1\nseed: 2\n", "line 2, column 1: not valid YAML: 'seed' is given twice"),
        ("stages:\n  a: {uses: base}\n  a: {uses: base}\n", "'a' is given twice"),
        ("stages: {a: {uses: base, source: x, source: y}}", "'source' is given twice"),
        ("? [a, b]\n: 1\n", "can't be a name"),
        ("seed: 1", "stages: missing, and it has no default"),
        ("stages: {}", "stages: "),
        ("stages: []", "stages: input should be a valid dictionary, got []"),
        ("stages: {a: null}", "stages.a: input should be a valid dictionary, got None"),
        ("stages: {1: {uses: base}}", "stages.1: "),
        ("version: 2\nstages: {a: {uses: base, source: x}}", "version: input should be less than or equal to 1, got 2"),
        ("execution: [1]\nstages: {a: {uses: base, source: x}}", "execution: "),
        ("path: x\nstages: {a: {uses: base, source: x}}", "path: no such field"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML: "),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe(problems: Callable[..., list[str]], text: str, message: str) -> None:
    assert message in "\n".join(problems(text, {"threads": 2}))


def test_overrides_of_a_recipe_without_stages_are_no_crash(problems: Callable[..., list[str]]) -> None:
    for text in ("seed: 1", "stages: [dpo]", "stages: [{a: 1}]", "stages: dpo"):
        assert any("no stage is named 'dpo'" in line for line in problems(text, dpo__beta=1))


def test_a_recipe_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match="can't be read as text"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match="can't be read as text"):
        load_recipe(tmp_path / "latin.yaml")


def test_every_missing_file_is_named(write_recipe: WriteRecipe, store: Store) -> None:
    recipe = chain()
    recipe["stages"]["rows"]["source"] = "mising.jsonl"
    recipe["stages"]["pairs"]["test_source"] = "gone.csv"
    with pytest.raises(DataError) as caught:
        make_plan(load_recipe(write_recipe(recipe)), store)
    first, second = str(caught.value).splitlines()
    assert "rows: source: nothing is at" in first
    assert "mising.jsonl" in first
    assert "pairs: source: nothing is at" in second


def plan_text(write_recipe: WriteRecipe, store: Store, recipe: Any, **overrides: Any) -> Plan:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return make_plan(load_recipe(write_recipe(recipe), given), store)


def test_numbers_that_yaml_takes_for_text_are_numbers(write_recipe: WriteRecipe, store: Store) -> None:
    text = yaml.safe_dump(chain()).replace("beta: 0.1", "beta: 2e-1").replace("source: rows", "source: ./rows")
    assert "2e-1" in text
    plan = plan_text(write_recipe, store, text)
    assert plan["dpo"].stage.beta == 0.2  # type: ignore[attr-defined]


def test_anchors_and_merge_keys_work(write_recipe: WriteRecipe, store: Store) -> None:
    text = """
    stages:
      base: {uses: base, source: "builtin:tiny-llama"}
      pairs: {uses: data, base: base, form: preferences, source: pairs.jsonl}
      one: &one {uses: dpo, policy: base, data: pairs, beta: 0.1, epochs: 2}
      two: {<<: *one, beta: 0.3}
    """
    plan = plan_text(write_recipe, store, text)
    assert (plan["two"].stage.beta, plan["two"].stage.epochs) == (0.3, 2)  # type: ignore[attr-defined]


def test_an_unknown_until_is_an_error_with_a_suggestion(write_recipe: WriteRecipe, store: Store) -> None:
    with pytest.raises(UserError, match=r"--until: no stage is named 'dop'; did you mean 'dpo'\?"):
        plan_text(write_recipe, store, chain()).until("dop")


def test_assignments_are_read_as_yaml() -> None:
    words = ["dpo.beta=0.2", "sft.lora={rank: 4}", "sft.lora=null", "name=a=b", "x.y=[1, 2]"]
    assert parse_assignments(words, "override") == {
        "dpo.beta": 0.2, "sft.lora": None, "name": "a=b", "x.y": [1, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dpo.beta", "override: wanted NAME=VALUE, got 'dpo.beta'"),
        ("=1", "override: wanted NAME=VALUE, got '=1'"),
        ("dpo.beta=[1", r"override dpo.beta: '\[1' is not a YAML value"),
    ],
)
def test_a_word_that_is_no_assignment(word: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_assignments([word], "override")
