"""A small world to run PPO in, and its runs, each made once a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.tasks.rl.group_runs import tiny, watch  # noqa: F401
from tests.tasks.rl.resume_runs import undisturbed  # noqa: F401
from tests.tasks.rl.runs import (
    Ran,
    World,
    one_thread,  # noqa: F401
    prompt_rows,
    run,
    write_rows,
)


@pytest.fixture(scope="module")
def worlds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """With as many layers as the module's `LAYERS` says, by default two."""
    layers = getattr(request.module, "LAYERS", 2)
    return {kind: World.build(tmp_path_factory.mktemp(kind), kind, layers) for kind in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def world(worlds: dict[str, World]) -> World:
    return worlds["llama"]


@pytest.fixture(scope="module")
def cached(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """A run of the small world, made once for all tests that ask for the same."""
    made: dict[str, Ran] = {}

    def get(**fields: Any) -> Ran:
        name = repr(sorted(fields.items()))
        if name not in made:
            made[name] = run(tmp_path_factory.mktemp("run"), **world.fields(**fields))
        return made[name]

    return get


@pytest.fixture(scope="module")
def with_data(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Fields in which data sets stand by name, with the sets themselves."""
    others = world.demonstrations.model_copy(
        update={"key": "others", "path": write_rows(tmp_path_factory.mktemp("others") / "out", prompt_rows(7, seed=9))}
    )
    named = {"demonstrations": world.demonstrations, "others": others}
    return lambda fields: {
        name: named.get(value, value) if name == "ptx_data" else value for name, value in fields.items()
    }  # fmt: skip
