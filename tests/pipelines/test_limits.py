"""Recipes that are far too large, and what else a text can do to whoever reads it, end with one line in no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import RecipeError
from pipelines.assignments import parse_assignments
from pipelines.limits import DEEPEST, LARGEST, MOST_STAGES
from pipelines.recipe import load_recipe
from tests.conftest import chain

STEPS = tuple(zip("abcdefgh", "bcdefghi", strict=True))
NINE = "[" + ", ".join(["*{0}"] * 9) + "]"
BOMB = 'a: &a ["lol"]\n' + "\n".join(f"{new}: &{new} {NINE.format(old)}" for old, new in STEPS)
MERGES = "a: &a {x: 1}\n" + "\n".join(f"{new}: &{new} {{<<: {NINE.format(old)}, {new}1: 1}}" for old, new in STEPS)


@pytest.fixture
def refused(write_recipe: Callable[..., Path]) -> Callable[..., str]:
    """The one line that is said, within a second."""

    def refused(recipe: Any, *changes: Any) -> str:
        path = write_recipe(recipe)
        began = time.process_time()
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, *changes)
        assert time.process_time() - began < 2
        (line,) = str(caught.value).splitlines()
        assert len(line) < 600
        return line.removeprefix(f"{path}: ")

    return refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "characters of names and values, aliases written out, got "),
        (MERGES, "characters of names and values, aliases written out, got "),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 1000 + "]", "aliases written out, got 100,1"),
        ("stages: &a [*a]", "an alias may stand in itself"),
        ("stages: " + "[" * 50_000, "more than 32 lists and mappings are within each other"),
        ("stages: " + "{a: " * 500 + "1" + "}" * 500, "line 1, column 134: not valid YAML: more than 32 lists"),
        ("# " + "x" * LARGEST, "wanted a recipe of at most 1,048,576 bytes, got more"),
        ("seed: " + "9" * 5000, "a number of 5,000 characters"),
        ("seed: 1" + ":1" * 100_000, "a number of 200,001 characters"),
        ("seed: 2026-13-01", "not valid YAML: a value can't be what it looks like: month must be in 1..12"),
        ("seed: !!int ''", "not valid YAML: a value can't be what it looks like"),
        ("seed: !!python/object/apply:os.system [touch x]", "could not determine a constructor"),
    ],
    ids=["aliases", "merges", "long alias", "itself", "lists", "mappings", "long", "digits", "base 60", "month",
         "no int", "python"],
)  # fmt: skip
def test_a_text_that_is_a_trap(refused: Callable[..., str], text: str, message: str):
    assert message in refused(text)


def test_aliases_that_mean_something_are_taken(write_recipe: Callable[..., Path]):
    text = "stages:\n  base: {uses: base, source: 'builtin:tiny-llama'}\n  a: &a {uses: data, base: base, "
    text += "form: demonstrations, source: rows.jsonl}\n  b: {<<: *a, form: preferences, source: pairs.jsonl}\n"
    assert load_recipe(write_recipe(text)).stages["b"]["base"] == "base"


def test_too_many_stages(refused: Callable[..., str]):
    stages = {f"base{i}": {"uses": "base", "source": "builtin:tiny-llama"} for i in range(MOST_STAGES + 1)}
    assert refused({"stages": stages}) == "stages: wanted at most 256, got 257"


def test_as_many_stages_in_a_row_as_are_allowed(write_recipe: Callable[..., Path]):
    stages = {"base": {"uses": "base", "source": "builtin:tiny-llama"}, "data": {**chain()["stages"]["pairs"]}}
    for i in range(MOST_STAGES - 2):
        stages[f"sft{i}"] = {"uses": "dpo", "policy": f"sft{i - 1}" if i else "base", "data": "data"}
    assert len(load_recipe(write_recipe({"stages": stages})).stages) == MOST_STAGES


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (({"dpo.beta": deep(DEEPEST + 1)},), "overrides: wanted at most 32 lists and mappings within each other"),
        (({"dpo.beta": "x" * LARGEST},), "overrides: wanted at most 1,048,576 characters"),
        (({"dpo" + ".a" * 100: 1},), "overrides: wanted names of at most 1000 characters and 32 dots, got 'dpo.a.a"),
        (({"dpo." + "a" * 2000: 1},), "overrides: wanted names of at most 1000 characters"),
        ((None, {"launch" + ".a" * 100: 1}), "execution: wanted names of at most 1000 characters and 32 dots"),
        ((None, None, {"dpo.beta": [deep(40)]}), "sweep: wanted at most 32 lists"),
        ((None, None, {f"{stage}.{field}": [*range(1, 9)] for stage in ("sft", "dpo") for field in (
            "epochs", "seed")}, 10**9), "wanted at most 4,096 stages with all branches, got "),
    ],
    ids=["deep", "long", "dots", "name", "execution", "sweep", "branches"],
)  # fmt: skip
def test_changes_that_are_too_much(refused: Callable[..., str], changes: tuple[Any, ...], message: str):
    assert message in refused(chain(), *changes)


@pytest.mark.parametrize(
    "name",
    [
        "../../up",
        "/tmp/x",
        "a/b",
        ".hidden",
        "..",
        "a\\b",
        "it's",
        'a"b',
        "two\nlines",
        "esc\x1b[0m",
        " padded",
        "n" * 200,
    ],
)
def test_a_name_is_no_path_and_stands_in_one_line(refused: Callable[..., str], name: str):
    """Runs are files that are called so."""
    assert refused(chain(), {"name": name}).startswith("name: wanted at most 160 bytes of text in one line")
    assert refused({**chain(), "name": name}).startswith("name: wanted at most 160 bytes of text in one line")


@pytest.mark.parametrize("name", ["; touch x", "$(touch x)", "`touch x`", "größe 3", "a.b", "<b>", "{x}"])
def test_a_name_may_be_odd(write_recipe: Callable[..., Path], name: str):
    assert load_recipe(write_recipe(chain()), {"name": name}).name == name


@pytest.mark.parametrize("label", ["two\nlines", "\x1b[2J", "n" * 200, ""])
def test_a_stage_has_a_name_that_can_be_shown(refused: Callable[..., str], label: str):
    recipe = chain()
    recipe["stages"][label] = {"uses": "base", "source": "builtin:tiny-gpt2"}
    assert refused(recipe).startswith("stages: wanted names of at most 160 bytes in one line, got")


def test_a_value_on_the_command_line_that_is_a_trap():
    for value in ("[" * 10_000, "2026-13-01", "!!python/name:os.system"):
        with pytest.raises(RecipeError, match=r"override dpo.beta: .* is not a YAML value"):
            parse_assignments([f"dpo.beta={value}"], "override")
