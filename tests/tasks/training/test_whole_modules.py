"""Modules that train whole beside an adapter, and tokens that are new: trained, kept, gone on from, merged, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from artifacts.errors import ModelError
from tasks.shape import ModelShape
from tasks.training.logps import padded
from tasks.training.models import ADAPTER_FILE, load_model, parameter_counts
from tasks.training.rows import load_rows

PREFIX = "base_model.model."
EMBEDDINGS = {"tiny-llama": "model.embed_tokens", "tiny-gpt2": "transformer.wte"}
NEW = ("<|user|>", "<|assistant|>")
RATE = 1e-3


@pytest.fixture(scope="module", params=EMBEDDINGS)
def grown(kitchen, request) -> Any:
    """A base with two more tokens, whose embeddings are its head."""
    return kitchen.make("base", source=f"builtin:{request.param}", add_tokens=NEW)


@pytest.fixture(scope="module")
def rows(kitchen, grown) -> Any:
    return kitchen.make(
        "data", base=grown.handle, form="demonstrations", source="instructions.jsonl", limit=16, template="alpaca"
    )


@pytest.fixture(scope="module")
def tuned(kitchen, grown, rows) -> Any:
    """One AdamW step on all rows at once."""
    return kitchen.make(
        "sft", base=grown.handle, data=rows.handle, batch_size=16, max_steps=1, warmup_ratio=0, eval_rows=0,
        learning_rate=RATE, lora={"rank": 4, "modules_to_save": [name_of(grown).rsplit(".", 1)[1]]},
    )  # fmt: skip


def name_of(grown: Any) -> str:
    return EMBEDDINGS[grown.stage.source.removeprefix("builtin:")]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(5, 25)[None]).logits
    return found


def test_new_tokens_are_one_token_each_and_start_as_the_mean_of_the_others(kitchen, grown):
    tokenizer = AutoTokenizer.from_pretrained(grown.handle.path)
    ids = tokenizer.convert_tokens_to_ids(list(NEW))
    assert tokenizer("<|user|>hi", add_special_tokens=False)["input_ids"][0] == ids[0]
    assert tokenizer.decode([ids[0]], skip_special_tokens=True) == ""
    plain = kitchen.make("base", source=grown.stage.source)
    before = load_file(plain.handle.path / "model.safetensors")[f"{name_of(grown)}.weight"]
    after = load_file(grown.handle.path / "model.safetensors")[f"{name_of(grown)}.weight"]
    assert torch.equal(after[: len(before)], before) and len(after) > max(ids)
    for row in ids:
        assert torch.allclose(after[row], before.mean(dim=0), atol=1e-6)
    assert json.loads((grown.handle.path / "config.json").read_text())["vocab_size"] == len(after)


@pytest.mark.parametrize("tokens", [["<|x|>", "<|x|>"], ["a"]])
def test_a_token_that_is_there_already_is_refused(kitchen, tokens):
    with pytest.raises(ModelError, match="in the vocabulary already"):
        kitchen.make("base", source="builtin:tiny-llama", add_tokens=tokens)


def test_the_first_step_goes_down_the_slope_of_both_uses_of_the_matrix(grown, rows, tuned):
    """AdamW's first step moves each weight by the rate, against its gradient, whatever that one's size."""
    model = load_model(grown.handle, "cpu")
    given = load_rows(rows.handle, "train")
    batch = padded([row["prompt_ids"] for row in given], [row["completion_ids"] for row in given], 0, "cpu")
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    torch.nn.functional.cross_entropy(found.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    matrix = model.get_input_embeddings().weight
    moved = load_file(tuned.handle.path / ADAPTER_FILE)[f"{PREFIX}{name_of(grown)}.weight"] - matrix.detach()
    clear = matrix.grad.abs() > 1e-5
    assert clear.float().mean() > 0.5
    assert torch.allclose(moved[clear], -RATE * matrix.grad[clear].sign(), atol=RATE / 20)


def test_the_head_stays_the_embeddings_and_both_names_mean_the_same(kitchen, grown, rows, tuned):
    adapter = load_file(tuned.handle.path / ADAPTER_FILE)
    assert torch.equal(adapter[f"{PREFIX}lm_head.weight"], adapter[f"{PREFIX}{name_of(grown)}.weight"])
    model = load_model(tuned.handle, "cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    other = kitchen.make("sft", **{**dict(tuned.stage), "lora": {"rank": 4, "modules_to_save": ["lm_head"]}})
    assert other.handle.digest() == tuned.handle.digest()


def test_the_plan_counts_what_trains(grown, tuned):
    trained = parameter_counts(load_model(tuned.handle, "cpu", trainable=True))[1]
    shape = ModelShape.of(grown.handle)
    assert shape is not None
    assert tuned.stage.trained(shape) == shape.adapter_parameters(tuned.handle) == trained


def test_it_goes_on_in_other_stages_and_its_merge_is_one_matrix_again(kitchen, grown, tuned):
    pairs = kitchen.make("data", base=grown.handle, form="preferences", source="preferences.jsonl",
                         test_source="validation.jsonl", limit=16, template="alpaca")  # fmt: skip
    start = load_file(tuned.handle.path / ADAPTER_FILE)
    for uses in ("dpo", "simpo"):
        made = kitchen.make(uses, policy=tuned.handle, data=pairs.handle, max_steps=2, learning_rate=1e-3, eval_rows=0)
        if uses == "dpo":
            assert made.points()[0]["metrics"]["train/loss"] == pytest.approx(0.6931472, abs=1e-5)
        tensors = load_file(made.handle.path / ADAPTER_FILE)
        assert tensors.keys() == start.keys() and not any(torch.equal(tensors[name], start[name]) for name in start)
        assert torch.equal(tensors[f"{PREFIX}lm_head.weight"], tensors[f"{PREFIX}{name_of(grown)}.weight"])
    merged = kitchen.make("merge", adapter=made.handle, data=pairs.handle)
    assert merged.metrics["merge/max_logit_difference"] < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(merged.handle.path)
    assert plain.lm_head.weight is plain.get_input_embeddings().weight
    assert torch.allclose(logits(plain), logits(load_model(made.handle, "cpu")), atol=1e-4)
    kitchen.make("ppo", policy=merged.handle, data=pairs.handle, programs={"checks": 1.0}, lora={"rank": 2},
                 batch_size=4, total_episodes=4, num_mini_batches=1, max_new_tokens=4, eval_rows=0)  # fmt: skip


def test_a_reward_model_trains_its_embeddings_too(kitchen, base, pairs):
    made = kitchen.make("reward", base=base.handle, data=pairs.handle, max_steps=2, learning_rate=1e-3, eval_rows=0,
                        lora={"rank": 4, "modules_to_save": ["embed_tokens", "norm"]})  # fmt: skip
    tensors, start = load_file(made.handle.path / ADAPTER_FILE), load_file(base.handle.path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert not torch.equal(tensors[PREFIX + name], start[name])
    assert made.stage.trained(ModelShape.of(base.handle)) == sum(map(torch.numel, tensors.values())) + 64
    assert made.metrics["eval/reward_accuracy"] >= 0


@pytest.fixture
def apart(base, tmp_path) -> Path:
    """peft's own adapter whose embeddings left the head behind, which peft allows."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["embed_tokens"],
                        task_type="CAUSAL_LM")  # fmt: skip
    model = get_peft_model(load_model(base.handle, "cpu"), config)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(torch.randn(model.get_input_embeddings().weight.shape), alpha=0.01)
    model.save_pretrained(tmp_path / "apart")
    return tmp_path / "apart"


def test_embeddings_that_left_the_head_are_two_matrices_after_the_merge(kitchen, base, pairs, apart):
    adopted = kitchen.make("adopt", base=base.handle, source=str(apart))
    merged = kitchen.make("merge", adapter=adopted.handle, data=pairs.handle)
    assert merged.metrics["merge/max_logit_difference"] < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(merged.handle.path)
    was = load_file(base.handle.path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(plain.lm_head.weight, was) and not torch.equal(plain.model.embed_tokens.weight, was)
    assert torch.allclose(logits(plain), logits(load_model(adopted.handle, "cpu")), atol=1e-4)


def test_a_gpt2_whose_embeddings_peft_did_not_tie_though_it_was_asked_merges_as_it_answers(kitchen, tmp_path):
    """It knows embeddings by two names, of which `wte` is none: it warns, and they leave the head."""
    from peft import LoraConfig, get_peft_model

    base = kitchen.make("base", source="builtin:tiny-gpt2").handle
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, modules_to_save=["wte"],
                        ensure_weight_tying=True, fan_in_fan_out=True, task_type="CAUSAL_LM")  # fmt: skip
    with pytest.warns(UserWarning, match="ensure_weight_tying"):
        theirs = get_peft_model(load_model(base, "cpu"), config)
    moved = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.5)
    ids = torch.arange(5, 25)[None]
    for _ in range(3):
        moved.zero_grad()
        theirs(ids, labels=ids).loss.backward()
        moved.step()
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    adopted = kitchen.make("adopt", base=base, source=str(tmp_path / "theirs"))
    rows = kitchen.make("data", base=base, form="demonstrations", source="instructions.jsonl", limit=8,
                        template="alpaca")  # fmt: skip
    merged = kitchen.make("merge", adapter=adopted.handle, data=rows.handle)
    plain = AutoModelForCausalLM.from_pretrained(merged.handle.path)
    was = load_file(base.path / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(plain.lm_head.weight, was) and not torch.equal(plain.transformer.wte.weight, was)
    assert torch.allclose(logits(plain), logits(theirs), atol=1e-4)


def test_an_adapter_that_trained_what_the_base_lacks_is_refused(kitchen, base, apart):
    tensors = load_file(apart / ADAPTER_FILE)
    tensors[f"{PREFIX}model.embed_tokens.weight"] = tensors[f"{PREFIX}model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, apart / ADAPTER_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"embed_tokens.weight has the shape \(\d+, 64\), not"):
        kitchen.make("adopt", base=base.handle, source=str(apart))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["embeddings"], "no module is named 'embeddings'; outside its layers this base has embed_tokens, .*norm"),
        (["mlp"], "mlp can't train whole, since model.layers.0.mlp.gate_proj gets an adapter"),
    ],
)
def test_modules_that_can_not_train_whole_are_refused(kitchen, base, demonstrations, names, message):
    with pytest.raises(ModelError, match=message):
        kitchen.make("sft", base=base.handle, data=demonstrations.handle, lora={"modules_to_save": names})


def test_half_precision_is_refused_for_what_trains_whole(kitchen, apart):
    coarse = kitchen.make("base", source="builtin:tiny-llama", dtype="bfloat16")
    rows = kitchen.make("data", base=coarse.handle, form="demonstrations", source="instructions.jsonl", limit=8)
    with pytest.raises(ModelError, match=r"wanted model\.embed_tokens in float32"):
        kitchen.make("sft", base=coarse.handle, data=rows.handle, lora={"modules_to_save": ["embed_tokens"]})
    with pytest.raises(ModelError, match=r"embed_tokens.* trains whole, and the base has it in half precision"):
        kitchen.make("adopt", base=coarse.handle, source=str(apart))


@pytest.mark.parametrize("uses", ["ppo", "rloo", "grpo", "reward"])
def test_where_roles_share_a_base_it_is_refused_with_the_way_out(kitchen, base, pairs, apart, uses):
    adopted = kitchen.make("adopt", base=base.handle, source=str(apart))
    start = {"base": base.handle, "adapter": adopted.handle} if uses == "reward" else {"policy": adopted.handle}
    scored = {} if uses == "reward" else {"programs": {"checks": 1.0}, "max_new_tokens": 4}
    with pytest.raises(ModelError, match="merge it and start from the merged checkpoint"):
        kitchen.make(uses, data=pairs.handle, **start, **scored)
    if uses != "reward":
        with pytest.raises(ValueError, match=r"lora\.modules_to_save must be left out"):
            kitchen.stage(uses, policy=base.handle, data=pairs.handle, lora={"modules_to_save": ["norm"]}, **scored)
