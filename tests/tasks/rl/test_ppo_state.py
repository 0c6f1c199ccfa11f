"""What each part of PPO's state is for: without it, a run that was interrupted ends otherwise."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.rl import loop as loop_module
from tasks.rl.state import capture
from tests.tasks.rl.resume_runs import EVERY_ROLLOUT, differences, interrupted, settings
from tests.tasks.rl.runs import World, run

pytestmark = pytest.mark.usefixtures("one_thread")
ITEMS: list[tuple[str, int, dict[str, Any]]] = [
    ("policy", 3, {}),
    ("value", 3, {}),
    ("optimizers.policy", 3, {}),
    ("optimizers.value", 3, {}),
    ("kl_coef", 3, {}),
    ("random.python", 3, {}),
    ("random.numpy", 3, {}),
    ("random.torch", 3, {}),
    ("kept.done", 3, {}),
    ("kept.tokens", 3, {}),
    ("kept.points", 3, {}),
    ("kept.before", 3, {}),
    ("kept.stopped", 2, {"early_stop_kl": 1e-9}),
    ("kept.best", 1, {"max_kl": 1e-6}),
]
FRESH = {"done": 0, "tokens": 0, "points": [], "rang": [], "stopped": 0, "before": {}, "best": None}


def without(item: str) -> Callable[..., Any]:
    """`restore`, but one item is as in a run that has only begun."""
    real = loop_module.restore

    def restore(state: dict[str, Any], *live: Any) -> dict[str, Any]:
        here: Any = state
        fresh: Any = copy.deepcopy(capture(*live, dict(FRESH)))
        *parents, last = item.split(".")
        for name in parents:
            here, fresh = here[name], fresh[name]
        here[last] = fresh[last]
        return real(state, *live)

    return restore


@pytest.fixture(scope="module")
def half_done(world: World, undisturbed: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A draft that was interrupted, and from which the undisturbed result has been reached."""
    made: dict[str, Path] = {}

    def get(at: int, **fields: Any) -> Path:
        if (name := repr((at, sorted(fields.items())))) not in made:
            made[name] = tmp_path_factory.mktemp("half")
            interrupted(made[name] / "draft", at, **settings(world, **fields), execution=EVERY_ROLLOUT)
            shutil.copytree(made[name] / "draft", made[name] / "whole")
            whole = run(made[name] / "whole", **settings(world, **fields), execution=EVERY_ROLLOUT)
            assert not differences(whole, undisturbed(**fields))
        return made[name] / "draft"

    return get


@pytest.mark.parametrize(("item", "at", "fields"), ITEMS, ids=[item for item, *_ in ITEMS])
def test_each_item_of_the_state_is_needed(world, undisturbed, half_done, tmp_path, monkeypatch, item, at, fields):
    draft = shutil.copytree(half_done(at, **fields), tmp_path / "less")
    monkeypatch.setattr(loop_module, "restore", without(item))
    try:
        less = run(draft, **settings(world, **fields), execution=EVERY_ROLLOUT)
    except (AssertionError, KeyError):  # without a best policy, and without figures from before, there is no end
        assert item in ("kept.best", "kept.before")
        return
    found = differences(less, undisturbed(**fields))
    assert found >= ({"figures"} if item == "kept.tokens" else {"metrics"}), item


def test_what_has_been_said_is_not_said_again(world, tmp_path, monkeypatch, capsys):
    loud = settings(world, learning_rate=0.1, num_ppo_epochs=3, schedule="constant")
    interrupted(tmp_path / "whole", 4, **loud, execution=EVERY_ROLLOUT)
    shutil.copytree(tmp_path / "whole", tmp_path / "less")
    said = capsys.readouterr().out
    assert "warning: clip_fraction" in said
    run(tmp_path / "whole", **loud, execution=EVERY_ROLLOUT)
    assert "warning: clip_fraction" not in capsys.readouterr().out
    monkeypatch.setattr(loop_module, "restore", without("kept.rang"))
    run(tmp_path / "less", **loud, execution=EVERY_ROLLOUT)
    assert "warning: clip_fraction" in capsys.readouterr().out


def test_every_item_of_the_state_has_its_test(undisturbed):
    state = undisturbed().state()
    names = set(state) - {"optimizers", "random", "kept"}
    names |= {f"{part}.{name}" for part in ("optimizers", "random", "kept") for name in state[part]}
    assert names == {item for item, *_ in ITEMS} | {"kept.rang", "random.cuda"}
