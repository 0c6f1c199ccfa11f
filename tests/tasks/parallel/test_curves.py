"""Two processes see the same losses as one with the same global batch, and leave the same weights, within rounding.

The last batch of each epoch is short: 5 of 29 rows, which is 4 and 1, or with a micro-batch of 1 three passes of which
one process has no row left in the last.
"""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.tasks.parallel.conftest import furthest
from tests.tasks.parallel.stages import DEEPSPEED
from tests.tasks.rl.runs import furthest as furthest_tensor

LOSSES = ("train/loss", "validation/loss", "train/grad_norm")
PARTS = {"fsdp": "pytorch_model_fsdp_0/*.distcp", "deepspeed": "global_step*/*_optim_states.pt"}
"""What each process leaves in a checkpoint of a model that was divided, by mode."""
FIGURES = ("train/entropy", "train/token_accuracy", "rewards/chosen", "rewards/margins")


def weights(ran):
    return load_file(ran.draft / "out" / "adapter_model.safetensors")


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto"])
def test_the_curves_of_two_processes_are_those_of_one(name, micro_batch, ran):
    one, two = ran(name), ran(name, 2, micro_batch=micro_batch)
    assert furthest(one, two, *LOSSES) < 5e-6
    assert furthest(one, two, *FIGURES) < 2e-5
    assert furthest_tensor(weights(one), weights(two)) < 2e-4


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_nor_does_it_matter_how_one_process_cuts_a_step(name, ran):
    """The short batch's 5 rows in micro-batches of 4: the last row by itself counts a fifth, not half."""
    whole, cut = ran(name), ran(name, micro_batch=4)
    assert furthest(whole, cut, *LOSSES) < 5e-6
    assert furthest(whole, cut, *FIGURES) < 2e-5
    assert furthest_tensor(weights(whole), weights(cut)) < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize("name", ["simpo", "orpo", "dpo with sft_weight"])
def test_so_are_those_of_the_other_losses(name, micro_batch, ran):
    """Among them DPO's with a mean over tokens beside the one over pairs."""
    one, two = ran(name), ran(name, 2, micro_batch=micro_batch)
    assert furthest(one, two, *LOSSES) < 5e-6
    assert furthest(one, two, *FIGURES) < 2e-5


@pytest.mark.parametrize("mode", ["fsdp", DEEPSPEED])
@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_divided_weights_give_the_same_curves_and_whole_files(name, mode, ran):
    one, two = ran(name), ran(name, 2, mode)
    assert furthest(one, two, *LOSSES) < 5e-6
    for file in (one.draft / "out").iterdir():
        made = two.draft / "out" / file.name
        if file.suffix == ".safetensors":
            assert furthest_tensor(load_file(file), load_file(made)) < 2e-4
        else:
            assert made.read_bytes() == file.read_bytes()
    assert len(list((one.draft / "out").iterdir())) == len(list((two.draft / "out").iterdir()))
    checkpoint = next((two.draft / "work").glob("checkpoint-*"))
    assert len(list(checkpoint.glob(PARTS[mode]))) == 2, "the weights were not divided at all"
    assert (checkpoint / "sharding").read_text() == f"divided by {mode} among 2 processes"


@pytest.mark.parametrize("mode", ["fsdp", DEEPSPEED])
def test_a_whole_model_that_was_divided_is_a_checkpoint_like_any_other(mode, ran):
    one, two = ran("sft whole"), ran("sft whole", 2, mode)
    assert furthest(one, two, "train/loss") < 5e-6
    names = [{path.name for path in (each.draft / "out").iterdir()} for each in (one, two)]
    assert names[0] == names[1]
    whole = [load_file(each.draft / "out" / "model.safetensors") for each in (one, two)]
    assert furthest_tensor(*whole) < 2e-4
