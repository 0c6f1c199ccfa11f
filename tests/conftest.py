from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.kinds import Artifact, Checkpoint
from artifacts.store import Store
from tasks.context import Execution
from tasks.job import Job
from tasks.registry import stage_class
from tasks.stage import Stage

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see tasks/__main__.py
ROOT = Path(__file__).resolve().parent.parent
FIRST_RUN = re.compile(r"^def test_\w+\((?:[^)]*\W)?(?:first|again|another_beta)\W", re.MULTILINE)
TOGETHER = "tests/tasks/parallel/"
LONGEST = ("tests/e2e/", "tests/faults/", TOGETHER, "tests/tasks/test_every_stage_resumes.py")
DEMONSTRATIONS = [{"prompt": f"Say {word}.", "completion": word} for word in ("one", "two", "three", "four")]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": "no"} for word in ("one", "two", "three", "four")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Every file goes to one worker, and all that use the first run of the tiny recipe to the same one, which makes it
    once; so do those that compare one process with two. (`--dist loadgroup` would do, but xdist 3.8 loses its groups
    under pytest 9.2.)"""
    from xdist.scheduler import LoadFileScheduling

    class OneFirstRun(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "first" if file in sharing else TOGETHER if file.startswith(TOGETHER) else file

    sharing = {
        str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "e2e").glob("test_*.py")
        if FIRST_RUN.search(path.read_text())
    }  # fmt: skip
    return OneFirstRun(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `$ALIGN_HOME` of this test's own; nothing is in it, not even the folder."""
    folder = tmp_path / "align-home"
    monkeypatch.setenv("ALIGN_HOME", str(folder))
    return folder


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chain() -> dict[str, Any]:
    """base -> data -> sft -> reward and dpo -> merge -> evaluate, on a model made in code."""
    return {
        "seed": 0,
        "stages": {
            "base": {"uses": "base", "source": "builtin:tiny-llama"},
            "rows": {"uses": "data", "base": "base", "form": "demonstrations", "source": "rows.jsonl"},
            "pairs": {"uses": "data", "base": "base", "form": "preferences", "source": "pairs.jsonl"},
            "sft": {"uses": "sft", "base": "base", "data": "rows", "lora": {"rank": 4}},
            "reward": {"uses": "reward", "base": "base", "data": "pairs"},
            "dpo": {"uses": "dpo", "policy": "sft", "data": "pairs", "beta": 0.1},
            "merge": {"uses": "merge", "adapter": "dpo", "data": "pairs"},
            "eval": {"uses": "evaluate", "policy": "merge", "data": "pairs", "reward": "reward"},
        },
    }


def recipe_writer(project: Path) -> Callable[..., Path]:
    """Writes a recipe (a mapping, or YAML as text) with its data files, into that folder or another; gives its path."""

    def write(recipe: Any, folder: Path | None = None, name: str = "recipe.yaml") -> Path:
        folder = folder or project
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "rows.jsonl").exists():
            write_rows(folder / "rows.jsonl", DEMONSTRATIONS)
            write_rows(folder / "pairs.jsonl", PAIRS)
        path = folder / name
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False))
        return path

    return write


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe with its data files; gives its path."""
    return recipe_writer(tmp_path / "project")


def run_stage(uses: str, draft: Path, *, seed: int = 0, **fields: Any) -> Artifact:
    """Run one stage in this process and in the folder `draft`; gives the handle of what it made."""
    stage: Stage = stage_class(uses).model_validate(fields).locate([draft.parent])
    handle = stage.output("0" * 64, draft / "out")
    job = Job.of(stage, uses=uses, key=handle.key, seed=seed, execution=Execution(threads=1, device="cpu"), draft=draft)
    stage.run(job.context(events=True))
    return handle


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The base with a chat template, one token a byte: made once, as the base stage makes it."""
    handle = run_stage("base", tmp_path_factory.mktemp("llama") / "base", source="builtin:tiny-llama")
    assert isinstance(handle, Checkpoint)
    return handle


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The base without chat template and without PAD of its own."""
    handle = run_stage("base", tmp_path_factory.mktemp("gpt2") / "base", source="builtin:tiny-gpt2")
    assert isinstance(handle, Checkpoint)
    return handle
