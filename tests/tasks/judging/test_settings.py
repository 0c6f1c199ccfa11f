"""What a recipe may say of a judge, and what it may not: all of it is said before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from tests.conftest import chain

HTTP = {"endpoint": "http://127.0.0.1:8000/v1", "model": "name"}
SECRET = "sk-do-not-show"


@pytest.fixture
def planned(home: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `align plan` says of a recipe with this judge, on standard error; empty where it has nothing against it."""

    def plan(**fields: Any) -> str:
        recipe = chain()
        recipe["stages"]["eval_base"] = {"uses": "evaluate", "policy": "base", "data": "pairs", "reward": "reward"}
        recipe["stages"]["judge"] = {"uses": "judge", "report": "eval", "against": "eval_base", **fields}
        status = main(["plan", str(write_recipe(recipe))])
        said = capsys.readouterr().err
        assert (status == 2) == bool(said)
        return said

    return plan


@pytest.mark.parametrize(
    "fields", [HTTP, {"policy": "base"}, {"policy": "sft"}, {"policy": "merge", "template": "alpaca"}]
)
def test_a_judge_is_an_endpoint_or_any_model_of_the_recipe(planned, fields):
    assert planned(**fields) == ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "judge: wanted one judge: either `endpoint` and `model`, or `policy`"),
        ({"endpoint": HTTP["endpoint"]}, "wanted one judge"),
        ({"model": "name"}, "wanted one judge"),
        ({"model": "name", "policy": "base"}, "wanted one judge"),
        ({**HTTP, "policy": "base"}, "wanted one judge"),
        ({**HTTP, "against": "eval"}, "judge: report and against are one evaluation; name two"),
        ({**HTTP, "against": "base"}, "judge.against: wanted a report, but 'base' makes a checkpoint"),
        ({"policy": "reward"}, "judge.policy: wanted a model, but 'reward' makes a reward model"),
        ({"endpoint": "127.0.0.1:8000", "model": "m"}, "judge.endpoint: wanted a URL such as http://127.0.0.1:8000/v1"),
        ({"endpoint": "file:///etc/passwd", "model": "m"}, "judge.endpoint: wanted a URL such as"),
        ({"endpoint": "http://host:port/v1", "model": "m"}, "judge.endpoint: wanted a URL such as"),
        ({"endpoint": f"https://u:{SECRET}@host/v1", "model": "m"}, "judge.endpoint: wanted a URL without user"),
        ({"endpoint": f"https://host/v1?key={SECRET}", "model": "m"}, "judge.endpoint: wanted a URL without user"),
        ({"endpoint": f"https://u:{SECRET}", "model": "m"}, "judge.endpoint: wanted a URL such as"),
        ({**HTTP, "api_key_env": SECRET}, "judge.api_key_env: wanted the name of an environment variable"),
        ({**HTTP, "api_key_env": "c0ffee"}, "judge.api_key_env: wanted the name of an environment variable"),
        ({**HTTP, "question": "{prompt}: {first}?"}, "judge.question: wanted {prompt}, {first}, {second} in it"),
        ({**HTTP, "request": {"messages": [], "n": 2}}, "judge.request: messages, n can't be set here"),
        ({**HTTP, "template": "alpaca"}, "judge: template means nothing beside `endpoint`; leave it out"),
        ({"policy": "base", "request": {"seed": 1}}, "judge: request means nothing beside `policy`; leave it out"),
        ({**HTTP, "max_lost": 1.5}, "judge.max_lost: input should be less than or equal to 1, got 1.5"),
        ({**HTTP, "modle": "m"}, "judge.modle: no such field; did you mean 'model'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_and_nothing_secret_with_it(planned, fields, said):
    got = planned(**fields)
    assert said in got
    assert SECRET not in got and len(got.splitlines()) == 1
