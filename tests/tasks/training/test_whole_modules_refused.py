"""Modules that can't train whole as named: inside each other, with a head's bias, in half precision by the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTJConfig

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint, Quantized
from tasks.lora import LoRA
from tasks.shape import ModelShape
from tasks.tiny import build_tiny
from tasks.training.models import add_adapter, load_checkpoint

ONE_TARGET = {"rank": 2, "target_modules": ["layers.1.self_attn.q_proj"]}


@pytest.mark.parametrize(("inner", "outer"), [("layers.0.mlp", "layers.0"), ("layers.0.mlp.up_proj", "model.layers.0")])
def test_a_module_inside_another_one_that_trains_whole_is_refused(kitchen, base, demonstrations, inner, outer):
    lora = {**ONE_TARGET, "modules_to_save": [outer, inner]}
    with pytest.raises(
        ModelError,
        match=rf"modules_to_save: model\.{inner} is in model\.layers\.0, which trains whole as it is; name one of them",
    ):
        kitchen.make("sft", base=base.handle, data=demonstrations.handle, lora=lora)


def test_modules_beside_each_other_and_one_named_twice_are_not(base):
    whole = ["layers.0.mlp", "layers.0.input_layernorm", "model.layers.0.mlp", "norm"]
    model = add_adapter(load_checkpoint(base.handle, "cpu"), LoRA(**ONE_TARGET, modules_to_save=whole))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name}
    assert {name.partition("model.model.")[2].partition(".modules_to_save")[0] for name in trained} == {
        "model.layers.0.mlp", "model.layers.0.input_layernorm", "model.norm"
    }  # fmt: skip


@pytest.fixture(scope="module")
def gptj(kitchen, tmp_path_factory) -> Any:
    """A base whose head is its embeddings, with a bias."""
    _, tokenizer = build_tiny("tiny-llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPTJConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    ))  # fmt: skip
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.bias is not None
    folder = tmp_path_factory.mktemp("gptj")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return kitchen.make("base", source=str(folder))


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_embeddings_that_are_a_head_with_a_bias_are_refused(kitchen, gptj, name):
    """peft would leave the bias out, and the model go on as another one."""
    rows = kitchen.make("data", base=gptj.handle, form="demonstrations", source="instructions.jsonl", limit=8)
    with pytest.raises(ModelError, match=r"transformer\.wte and lm_head are one matrix, which peft can't keep so here"):
        kitchen.make("sft", base=gptj.handle, data=rows.handle, lora={"rank": 2, "modules_to_save": [name]})
    made = kitchen.make("sft", base=gptj.handle, data=rows.handle, max_steps=1, eval_rows=0,
                        lora={"rank": 2, "modules_to_save": ["ln_f"]})  # fmt: skip
    assert made.metrics["train/loss"] > 0


@pytest.fixture
def planned(base, tmp_path) -> Any:
    """A base in half precision of which nothing is there but its configuration."""
    config = json.loads((base.handle.path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return Checkpoint(key="half", path=tmp_path)


@pytest.mark.parametrize(("uses", "start"), [("sft", "base"), ("reward", "base"), ("orpo", "policy")])
def test_half_precision_is_refused_by_the_plan(kitchen, planned, demonstrations, pairs, uses, start):
    data = {"data": (demonstrations if uses == "sft" else pairs).handle}
    lora = {"rank": 2, "modules_to_save": ["embed_tokens", "norm"]}
    said = kitchen.stage(uses, lora=lora, **{start: planned}, **data).input_problem()
    assert said == (
        "lora.modules_to_save: wanted embed_tokens, norm in float32, got half precision, in which small updates vanish"
        "; take a base with `dtype: float32`, or leave that to an adapter"
    )
    assert kitchen.stage(uses, lora={"rank": 2}, **{start: planned}, **data).input_problem() is None


def test_float32_and_4_bits_made_from_half_precision_are_not(kitchen, base, planned, tmp_path):
    lora = LoRA(rank=2, modules_to_save=["embed_tokens"])
    assert lora.problem(base.handle) is None
    assert lora.problem(Checkpoint(key="none", path=Path("/nowhere"))) is None, "it is not made yet"
    coarse = kitchen.make("base", source="builtin:tiny-llama", dtype="bfloat16")
    assert lora.problem(coarse.handle) is not None
    four = kitchen.make("quantize", base=coarse.handle).handle
    assert isinstance(four, Quantized) and lora.problem(four) is None
    trained = add_adapter(load_checkpoint(four, "cpu"), lora)
    counted = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    assert counted == lora.parameters(ModelShape.of(four))
