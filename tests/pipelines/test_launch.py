"""What a recipe may say of processes: no part of a key, and refused before anything runs where it can't be done."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from artifacts.errors import RecipeError
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
from tasks.parallel import settings
from tests.conftest import chain

CORES = len(os.sched_getaffinity(0))
SAMPLED = {"policy": "sft", "data": "pairs", "reward": "reward"}
two_cores = pytest.mark.skipif(CORES < 2, reason="one core")


@pytest.fixture
def planned(write_recipe, store):
    def plan(*, launch=None, execution=None, **stages):
        recipe = chain()
        recipe["execution"] = {"device": "cpu", **({"launch": launch} if launch else {})}
        for name, fields in stages.items():
            recipe["stages"][name] = {**recipe["stages"].get(name, {}), **fields}
        return make_plan(load_recipe(write_recipe(recipe), execution=execution), store)

    return plan


@pytest.fixture
def refused(planned):
    def plan(**given):
        with pytest.raises(RecipeError) as caught:
            planned(**given)
        assert caught.value.exit_status == 2
        return str(caught.value)

    return plan


@two_cores
def test_processes_and_mode_are_no_part_of_any_key(planned):
    keys = [
        {stage.label: stage.key for stage in plan.stages}
        for plan in (
            planned(),
            planned(launch={"processes": 2}),
            planned(execution={"launch.processes": 2, "launch.mode": "ddp"}),
        )
    ]
    assert keys[0] == keys[1] == keys[2]


def test_one_word_on_the_command_line_leaves_the_recipes_others_as_they_are(write_recipe):
    recipe = {**chain(), "execution": {"threads": 2, "launch": {"processes": 2, "mode": "fsdp"}}}
    found = load_recipe(write_recipe(recipe), execution={"launch.processes": 4}).execution
    assert (found.threads, found.launch.processes, found.launch.mode) == (2, 4, "fsdp")


def test_more_processes_than_cores_are_refused(refused):
    count = 8 * CORES
    said = refused(launch={"processes": count}, sft={"batch_size": count}, reward={"batch_size": count},
                   dpo={"batch_size": count})  # fmt: skip
    assert f"execution.launch: wanted at most {CORES} processes, since this machine has {CORES} CPU cores" in said


def test_with_gpus_these_are_counted(monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(settings, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    three = settings.Launch(processes=3)
    assert "has 2 GPUs, got 3" in str(settings.machine_problem(three, "auto"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert settings.gpu_count() == 1
    assert settings.machine_problem(settings.Launch(processes=1), "auto") is None


@two_cores
def test_a_mode_that_a_stage_cant_do_is_refused_by_its_name(refused):
    said = refused(
        launch={"processes": 2, "mode": "fsdp"}, ppo={"uses": "ppo", **SAMPLED},
        kto={"uses": "simpo", "policy": "sft", "data": "pairs"},
    )  # fmt: skip
    assert "ppo: wanted execution.launch.mode ddp, got fsdp" in said
    assert "kto: wanted execution.launch.mode ddp, got fsdp" in said
    assert "sft" not in said and "dpo:" not in said


@two_cores
@pytest.mark.parametrize("uses", ["rloo", "grpo"])
def test_the_methods_over_groups_are_refused_in_several(refused, uses):
    said = refused(launch={"processes": 2}, groups={"uses": uses, **SAMPLED})
    assert "groups: wanted execution.launch.processes 1, since it runs in one process only, got 2" in said


@two_cores
@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"sft": {"batch_size": 7}}, "sft: wanted execution.launch.processes to divide batch_size 7, got 2"),
        ({"sft": {"lora": {"rank": 4, "dropout": 0.1}}}, "another result under the same key"),
        ({"dpo": {"loss_type": "aot"}}, "another result under the same key"),
    ],
)
def test_what_can_not_be_divided_without_another_result_is_refused(refused, stages, said):
    assert said in refused(launch={"processes": 2}, **stages)


@two_cores
def test_passes_must_divide_the_rows_of_one_process(refused):
    said = refused(launch={"processes": 2}, execution={"micro_batch": 8})
    assert "micro_batch to divide the 4 rows that each of 2 processes has of batch_size 8, got 8" in said


@two_cores
@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_is_refused_where_it_is_not_installed(refused):
    assert "deepspeed, which is not installed here" in refused(launch={"processes": 2, "mode": "deepspeed"})


@two_cores
def test_moments_in_8_bits_are_not_divided(refused):
    said = refused(launch={"processes": 2, "mode": "fsdp"}, sft={"optimizer": "adamw_8bit"})
    assert "sft: wanted `optimizer: adamw` with execution.launch.mode fsdp, got adamw_8bit" in said
