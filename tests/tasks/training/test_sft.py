from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from artifacts.errors import DataError, ModelError
from artifacts.kinds import Checkpoint
from tasks.context import Execution
from tasks.sft import labelled, require_eos
from tasks.training.logps import padded, token_logps
from tasks.training.models import load_model, load_tokenizer
from tasks.training.rows import epoch_order, load_rows


def test_only_the_completion_and_its_eos_carry_a_label(demonstrations, base):
    eos = load_tokenizer(base.handle).eos_token_id
    for row in load_rows(demonstrations.handle, "train"):
        labels = labelled(row)["labels"]
        assert labels[: len(row["prompt_ids"])] == [-100] * len(row["prompt_ids"])
        assert labels[len(row["prompt_ids"]) :] == row["completion_ids"]
        assert labels[-1] == eos and labels.count(eos) == 1


def test_the_first_loss_is_the_mean_over_the_batchs_completion_tokens(sft, base, demonstrations):
    rows = load_rows(demonstrations.handle, "train")
    ids = [labelled(row)["input_ids"] for row in rows]
    seed = json.loads((sft.folder / "job.json").read_text())["seed"] if (sft.folder / "job.json").exists() else 0
    from tasks.stage import derive_seed

    first = epoch_order([len(one) for one in ids], 8, derive_seed(seed, "sft"), 0)[:8]
    batch = padded([rows[i]["prompt_ids"] for i in first], [rows[i]["completion_ids"] for i in first], 0, "cpu")
    with torch.no_grad():
        logits = load_model(base.handle, "cpu")(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    by_hand = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), batch["labels"][:, 1:].reshape(-1), ignore_index=-100
    )
    points = [point for point in sft.points() if "train/loss" in point["metrics"]]
    assert points[0]["metrics"]["train/loss"] == pytest.approx(float(by_hand), abs=2e-4)


def test_training_lowers_the_held_out_loss(sft):
    assert sft.metrics["validation/loss"] < sft.metrics["validation/loss_before"]


def test_the_axis_counts_samples(sft):
    steps = [point["step"] for point in sft.points() if "train/loss" in point["metrics"]]
    assert steps == [8, 16, 24, 32]


def test_the_micro_batch_changes_the_result_within_rounding_only(kitchen, sft, base, demonstrations):
    small = kitchen.make(
        "sft", Execution(threads=2, micro_batch=2), base=base.handle, data=demonstrations.handle, learning_rate=3e-3,
        lora={"rank": 4, "alpha": 8},
    )  # fmt: skip
    assert adapter_of(small).keys() == adapter_of(sft).keys()
    for name, tensor in adapter_of(sft).items():
        assert torch.allclose(adapter_of(small)[name], tensor, atol=2e-4), name


def adapter_of(made):
    from safetensors.torch import load_file

    return load_file(made.handle.path / "adapter_model.safetensors")


def test_the_adapter_names_its_base_by_digest_and_no_path(sft, base):
    text = (sft.handle.path / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == base.handle.digest()
    assert str(base.folder) not in text


def test_an_adapter_is_refused_on_another_base(sft, kitchen):
    other = kitchen.make("base", source="builtin:tiny-gpt2")
    with pytest.raises(ModelError, match="was trained on the base"):
        load_model(sft.handle.model_copy(update={"base": other.handle}), "cpu")


def test_top_layers_puts_adapters_on_the_last_layers_only(kitchen, base, demonstrations):
    made = kitchen.make(
        "sft", base=base.handle, data=demonstrations.handle, max_steps=1, lora={"rank": 2, "top_layers": 1}, eval_rows=0
    )
    assert all(".layers.1." in name for name in adapter_of(made))


def test_target_modules_that_match_nothing_name_those_that_exist(kitchen, base, demonstrations):
    with pytest.raises(ModelError, match="q_proj"):
        kitchen.make(
            "sft", base=base.handle, data=demonstrations.handle, max_steps=1, lora={"target_modules": ["c_attn"]}
        )


def test_full_fine_tuning_leaves_a_checkpoint_that_plain_transformers_loads(kitchen, base, demonstrations):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = kitchen.make("sft", base=base.handle, data=demonstrations.handle, max_steps=2, lora=None, learning_rate=1e-3)
    assert isinstance(made.handle, Checkpoint)
    trained = AutoModelForCausalLM.from_pretrained(made.handle.path).state_dict()
    start = AutoModelForCausalLM.from_pretrained(base.handle.path).state_dict()
    assert all(not torch.equal(trained[name], start[name]) for name in start if "proj" in name)
    assert AutoTokenizer.from_pretrained(made.handle.path).chat_template


def test_rows_that_all_lost_their_eos_are_an_error_that_names_one():
    with pytest.raises(DataError, match="row 7"):
        require_eos([{"row": 7, "completion_ids": [5, 6]}, {"row": 9, "completion_ids": [5]}], eos=2)


def test_token_logps_equal_those_of_the_full_softmax(base):
    model = load_model(base.handle, "cpu")
    batch = padded([[5, 6, 7], [8]], [[9, 10, 2], [11, 2]], 0, "cpu")
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        found = token_logps(model, batch)
    assert found[0, 2] == pytest.approx(float(logits[0, 2, 9]), abs=1e-5)
    assert found[1, 0] == pytest.approx(float(logits[1, 0, 11]), abs=1e-5)
    assert found[1, 2:].abs().sum() == 0


def test_every_epoch_is_a_permutation_whose_batches_hold_rows_of_like_length():
    lengths = [i * 37 % 101 for i in range(100)]
    order = epoch_order(lengths, 8, seed=3, epoch=1)
    assert sorted(order) == list(range(100))
    assert order != epoch_order(lengths, 8, seed=3, epoch=2) and order == epoch_order(lengths, 8, seed=3, epoch=1)
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in
              (order[at : at + 8] for at in range(0, 96, 8))]  # fmt: skip
    assert sum(spread) / len(spread) < 30  # a plain shuffle has about 80


def test_rows_of_equal_length_are_shuffled_not_kept_in_the_datas_order():
    """A file that is sorted by anything, say by topic, would give batches of one topic each."""
    order = epoch_order([7] * 4096, 64, seed=0, epoch=0)
    means = [sum(order[at : at + 64]) / 64 for at in range(0, 4096, 64)]
    assert max(abs(mean - 2047.5) for mean in means) < 5 * 4096 / math.sqrt(12 * 64)


@pytest.mark.parametrize("uses", ["sft", "reward"])
def test_an_adapter_of_another_base_is_refused_by_the_plan(uses, kitchen, sft, demonstrations, pairs):
    other = kitchen.make("base", source="builtin:tiny-llama", dtype="bfloat16")
    data = demonstrations if uses == "sft" else pairs
    stage = kitchen.stage(uses, base=other.handle, data=data.handle, adapter=sft.handle)
    assert "give both the same base" in stage.input_problem()
    fitting = kitchen.stage(uses, base=sft.handle.base, data=data.handle, adapter=sft.handle)
    assert fitting.input_problem() is None


@pytest.mark.parametrize("uses", ["sft", "reward"])
def test_an_adapter_with_dropout_goes_on_without_so_the_micro_batch_is_free(
    kitchen, base, demonstrations, pairs, uses, tmp_path
):
    dropped = kitchen.make("sft", base=base.handle, data=demonstrations.handle, max_steps=1, eval_rows=0,
                           lora={"rank": 4, "dropout": 0.5})  # fmt: skip
    data = (demonstrations if uses == "sft" else pairs).handle
    found = [
        load_file(kitchen.make(
            uses, Execution(threads=1, micro_batch=rows), base=base.handle, data=data, adapter=dropped.handle,
            max_steps=3, learning_rate=1e-3, eval_rows=0,
        ).handle.path / "adapter_model.safetensors")
        for rows in (2, 8)
    ]  # fmt: skip
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])
