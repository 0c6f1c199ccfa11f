from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.store import Store
from flows.cli import main
from pipelines.plan import Planned, make_plan
from pipelines.recipe import load_recipe
from tasks.job import Job
from tests.conftest import chain

WriteRecipe = Callable[..., Path]


@pytest.fixture
def plan(home: Path, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`align plan RECIPE ... --json`, as {stage: its line}."""
    path = write_recipe(chain())

    def planned(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["plan", str(path), *words, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["recipe"] == str(path)
        return {stage["name"]: stage for stage in answer["stages"]}

    return planned


def make(store: Store, planned: Planned) -> None:
    """Run a stage in this process and keep what it made."""
    draft = store.draft(planned.uses, planned.key)
    execution = load_recipe_execution()
    job = Job.of(planned.stage, uses=planned.uses, key=planned.key, seed=0, execution=execution, draft=draft)
    metrics = planned.stage.run(job.context(events=True))
    store.commit(
        uses=planned.uses, key=planned.key, kind=planned.handle.kind, payload=planned.payload, fields={},
        metrics=metrics, seconds=1.0, source_digest=planned.stage.source_digest(),
    )  # fmt: skip


def load_recipe_execution() -> Any:
    from tasks.context import Execution

    return Execution(threads=1, device="cpu")


def test_a_plan_has_a_line_for_each_stage_with_all_its_fields(plan: Callable[..., dict[str, Any]]) -> None:
    lines = plan()
    assert list(lines) == ["base", "rows", "pairs", "sft", "reward", "dpo", "merge", "eval"]
    for line in lines.values():
        assert set(line) == {
            "name", "uses", "key", "cached", "reason", "parameters", "trainable", "memory_bytes", "steps",
            "memory_is_bound", "steps_is_bound", "memory", "tokens", "tokens_is_bound", "disk_bytes", "fits",
            "micro_batch", "largest_micro_batch", "seconds_estimate",
        }  # fmt: skip
        assert (line["cached"], line["reason"], len(line["key"])) == (False, "never run", 64)


def test_a_plan_makes_nothing(plan: Callable[..., dict[str, Any]], home: Path) -> None:
    plan()
    assert {path.name for path in home.iterdir()} <= {"digests.json"}


def test_until_leaves_out_what_follows(plan: Callable[..., dict[str, Any]]) -> None:
    assert set(plan("--until", "sft")) == {"base", "rows", "sft"}


def test_overrides_and_execution_are_taken_from_the_command_line(plan: Callable[..., dict[str, Any]]) -> None:
    before, beta, threads = plan(), plan("dpo.beta=0.2"), plan("--exec", "threads=1")
    assert {name for name in before if before[name]["key"] != beta[name]["key"]} == {"dpo", "merge", "eval"}
    assert threads == before


def test_overrides_may_follow_options_and_what_is_no_override_is_refused(plan: Callable[..., dict[str, Any]]) -> None:
    assert plan("--exec", "threads=1", "sft.learning_rate=0.5") == plan("sft.learning_rate=0.5", "--exec", "threads=1")
    with pytest.raises(SystemExit, match="2"):
        plan("--nonsense")
    with pytest.raises(SystemExit, match="2"):
        main(["runs", "sft.learning_rate=0.5"])


def test_once_base_and_data_are_there_a_plan_knows_parameters_steps_and_memory(
    plan: Callable[..., dict[str, Any]], home: Path, write_recipe: WriteRecipe
) -> None:
    store = Store(home)
    planned = make_plan(load_recipe(write_recipe(chain())), store)
    for label in ("base", "rows", "pairs"):
        make(store, planned[label])
    lines = plan("sft.epochs=3", "sft.batch_size=2")
    assert [name for name, line in lines.items() if line["cached"]] == ["base", "rows", "pairs"]
    sft = lines["sft"]
    whole = 16_576 + 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128) + 5 * 64  # embeddings, two layers, norms
    lora = 4 * 2 * (128 + 96 + 96 + 128 + 3 * 192)
    assert (sft["trainable"], sft["parameters"]) == (lora, whole + lora)
    assert sft["steps"] == 3 * 2
    assert sft["memory_bytes"] > 4 * whole


def test_why_names_every_difference(
    plan: Callable[..., dict[str, Any]], home: Path, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    store, path = Store(home), write_recipe(chain())
    make(store, make_plan(load_recipe(path), store)["base"])
    assert main(["plan", str(path), "base.dtype=bfloat16", "base.pad_token=<|pad|>", "--why", "base"]) == 0
    said = capsys.readouterr().out
    assert "will run" in said
    assert "dtype: the default -> bfloat16" in said
    assert "pad_token: the default -> <|pad|>" in said


def test_a_table_is_shown_without_json(
    home: Path, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(write_recipe(chain()))]) == 0
    table = capsys.readouterr().out
    stages = table.split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in stages] == list(chain()["stages"])
