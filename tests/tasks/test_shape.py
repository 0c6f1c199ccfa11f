"""Counts in closed form against the models that transformers and peft make of the same configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from artifacts.kinds import Adapter, Checkpoint
from tasks.lora import LoRA
from tasks.shape import ModelShape, tensor_elements
from tasks.training.models import add_adapter
from tests.bench.lora_sizes import MODELS, RANKS, main, sizes

SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 96}  # fmt: skip
CONFIGS = {
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama with wide heads": LlamaConfig(**SIZES, head_dim=32),
    "mistral": MistralConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=128),
    "gpt2 with its own width": GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=128, n_inner=100),
}
GPT2 = GPT2Config()


def saved(config: PretrainedConfig, folder: Path) -> dict[str, Any]:
    """The configuration as a file keeps it."""
    config.save_pretrained(folder)
    return dict(json.loads((folder / "config.json").read_text()))


def on_meta(config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_weights_are_counted(name: str, tmp_path: Path) -> None:
    shape = ModelShape.from_config(saved(CONFIGS[name], tmp_path))
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in on_meta(CONFIGS[name]).parameters())


LLAMA_LORAS = [
    LoRA(rank=8),
    LoRA(rank=4, target_modules=["q_proj", "v_proj"]),
    LoRA(rank=4, target_modules=["self_attn.o_proj"]),
    LoRA(rank=2, target_modules=r".*\.1\.mlp\.(up|down)_proj"),
    LoRA(rank=8, top_layers=1),
    LoRA(rank=8, dora=True, target_modules=["q_proj", "down_proj"]),
    LoRA(rank=8, top_layers=9),
    LoRA(rank=8, modules_to_save=["embed_tokens"]),
    LoRA(rank=8, modules_to_save=["lm_head", "model.norm"]),
    LoRA(rank=8, modules_to_save=["embed_tokens", "lm_head"]),
]
GPT2_LORAS = [
    LoRA(rank=16),
    LoRA(rank=8, target_modules=["c_attn", "attn.c_proj"]),
    LoRA(rank=8, target_modules=["c_proj"]),
    LoRA(rank=8, dora=True),
    LoRA(rank=8, top_layers=2, target_modules=["c_attn"]),
    LoRA(rank=8, modules_to_save=["wte", "wpe", "ln_f"]),
]


@pytest.mark.parametrize(
    ("name", "lora"),
    [(name, lora) for name in ("llama tied", "llama untied", "llama with wide heads", "qwen2") for lora in LLAMA_LORAS]
    + [("gpt2", lora) for lora in GPT2_LORAS],
    ids=str,
)
def test_adapters_are_counted_as_peft_makes_them(name: str, lora: LoRA, tmp_path: Path) -> None:
    shape, model = ModelShape.from_config(saved(CONFIGS[name], tmp_path)), on_meta(CONFIGS[name])
    adapted = add_adapter(model, lora)
    assert shape is not None
    assert lora.parameters(shape) == sum(
        parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
    )


@pytest.mark.parametrize(
    ("rank", "targets", "top_layers", "wanted"),
    [
        (16, "all-linear", None, 2_359_296),
        (8, ["c_attn", "attn.c_proj"], None, 442_368),
        (8, ["c_attn", "attn.c_proj"], 6, 221_184),
        (8, ["c_attn"], None, 294_912),
    ],
)
def test_the_numbers_known_of_gpt2(rank: int, targets: Any, top_layers: int | None, wanted: int) -> None:
    shape = ModelShape.from_config(GPT2.to_dict())
    assert shape is not None
    assert shape.parameters == 124_439_808
    assert shape.lora_parameters(rank, targets, top_layers) == wanted


@pytest.mark.parametrize("name", ["GPT-2 124M", "GPT-2 774M", "GPT-2 1.5B", "GPT-J 6B", "Llama 3 8B"])
@pytest.mark.parametrize("rank", RANKS)
def test_the_table_of_sizes_is_what_transformers_and_peft_make(name: str, rank: int) -> None:
    """On the meta device, where no weight takes memory."""
    config, attention = MODELS[name]
    for targets in (attention, "all-linear"):
        total, trained = sizes(config, targets)
        model = on_meta(config)
        assert total == sum(parameter.numel() for parameter in model.parameters())
        adapted = add_adapter(model, LoRA(rank=rank, target_modules=targets))
        assert adapted.get_nb_trainable_parameters()[0] == trained[RANKS.index(rank)]


def test_make_lora_sizes_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Two matrices of rank r on 768 -> 2304 and 768 -> 768 in 12 layers: r 12 (3072 + 1536); the others likewise."""
    main()
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "GPT-2 124M 124,439,808 c_attn, attn.c_proj 442,368 884,736 3,538,944" in rows
    assert "GPT-2 1.5B 1,557,611,200 c_attn, attn.c_proj 3,686,400 7,372,800 29,491,200" in rows
    assert "GPT-J 6B 6,050,882,784 q_proj, k_proj, v_proj, out_proj 7,340,032 14,680,064 58,720,256" in rows


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mamba"}, {"model_type": "gpt2"}, {"model_type": "llama"}], ids=str
)
def test_nothing_is_guessed_of_what_is_not_known(config: dict[str, Any]) -> None:
    assert ModelShape.from_config(config) is None


def test_a_base_that_is_not_there_yet_has_no_shape(tmp_path: Path, tiny_llama: Checkpoint) -> None:
    assert ModelShape.of(Checkpoint(key="k", path=tmp_path)) is None
    shape = ModelShape.of(Adapter(key="k", path=tmp_path, base=tiny_llama))
    assert shape is not None
    assert shape.parameters == sum(tensor_elements(tiny_llama.path / "model.safetensors").values())
    assert shape.bytes_each == 4


def test_a_damaged_base_has_no_shape_and_stops_no_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    base = Checkpoint(key="k", path=tmp_path)
    assert ModelShape.of(base) is None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0rubbish")
    shape = ModelShape.from_config(GPT2.to_dict())
    assert shape is not None
    assert shape.adapter_parameters(Adapter(key="k", path=tmp_path, base=base)) is None
