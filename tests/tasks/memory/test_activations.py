"""What a backward pass waits for is counted in closed form; here beside what torch really keeps, and beside hand-made
numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tasks.lora import LoRA
from tasks.memory.activations import cached, checkpoints, kept, kept_in_layer
from tasks.memory.adapted import Adapted
from tasks.rl.lora_linear import fuse
from tasks.rl.recomputing import recomputing
from tasks.shape import ModelShape
from tasks.training.logps import trunk_of
from tasks.training.models import add_adapter, without_dropout

ROWS, WIDTH = 4, 48
LLAMA = LlamaConfig(
    vocab_size=300, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
    intermediate_size=640, tie_word_embeddings=True,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=300, n_embd=256, n_layer=4, n_head=8, n_positions=64)


def shape_of(config: Any, dtype: str = "float32") -> ModelShape:
    shape = ModelShape.from_config({**config.to_dict(), "dtype": dtype})
    assert shape is not None
    return shape


def really_kept(model: Any, config: Any) -> int:
    """Bytes of all that a forward pass over a padded batch saves for its backward pass, each piece of memory once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved.setdefault(place, tensor)  # kept alive, so that no other comes to lie there
        return tensor

    ids = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, WIDTH - 5 :] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = trunk_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize(
    ("config", "dtype", "lora", "fused"),
    [
        (LLAMA, "float32", LoRA(rank=8), False),
        (LLAMA, "float32", LoRA(rank=8), True),
        (LLAMA, "bfloat16", LoRA(rank=8), False),
        (LLAMA, "bfloat16", LoRA(rank=8), True),
        (LLAMA, "float32", LoRA(rank=8, top_layers=2), False),
        (LLAMA, "float32", LoRA(rank=8, target_modules=["q_proj", "v_proj"]), False),
        (LLAMA, "float32", LoRA(rank=8, dropout=0.1), False),
        (LLAMA, "float32", None, False),
        (GPT2, "float32", LoRA(rank=8), False),
        (GPT2, "float32", None, False),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_it_is_what_torch_keeps(config: Any, dtype: str, lora: LoRA | None, fused: bool) -> None:
    torch.manual_seed(0)
    model = without_dropout(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)))
    shape = shape_of(config, dtype)
    if lora is not None:
        model = add_adapter(model, lora)
    if fused:
        assert fuse(model)
    counted = ROWS * WIDTH * kept(shape, lora and Adapted.fresh(shape, lora), WIDTH, fused=fused)
    assert counted == pytest.approx(really_kept(model.train(), config), rel=0.04)


def test_checkpointing_keeps_the_states_between_layers_alone() -> None:
    """In evaluation mode, as PPO runs: 4 layers of 4 x 48 tokens x 256 numbers, and the last norm."""
    model = add_adapter(AutoModelForCausalLM.from_config(LLAMA), LoRA(rank=8)).eval()
    whole = really_kept(model, LLAMA)
    with recomputing(model):
        between = really_kept(model, LLAMA)
    assert really_kept(model, LLAMA) == whole
    assert between < whole / 5
    assert between == pytest.approx(ROWS * WIDTH * 256 * 4 * 5, rel=0.01)


def test_a_layer_by_hand() -> None:
    """H = A = 256, I = 640, rank 8, float32: norms 8 H, attention 16 A, MLP 12 I; inputs of q, gate and down; 7 x 8."""
    shape = shape_of(LLAMA)
    every = frozenset(name for name, _, _ in shape.linears)
    by_hand = 8 * 256 + 16 * 256 + 12 * 640 + 4 * (256 + 256 + 640) + 4 * 7 * 8
    assert kept_in_layer(shape, every, 8, dropout=False, fused=False) == by_hand


def test_a_layer_in_half_precision_by_hand() -> None:
    """States take 2 bytes, norms 4 still, and peft makes a float32 input for each of the seven adapters."""
    shape = shape_of(LLAMA, "bfloat16")
    every = frozenset(name for name, _, _ in shape.linears)
    by_hand = 8 * 256 + 8 * 256 + 6 * 640 + 4 * (6 * 256 + 640) + 4 * 7 * 8
    assert kept_in_layer(shape, every, 8, dropout=False, fused=False) == by_hand


def test_checkpoints_by_hand() -> None:
    """What enters the four layers and leaves the last one, and one layer's all."""
    shape, lora = shape_of(LLAMA), LoRA(rank=8)
    adapted = Adapted.fresh(shape, lora)
    assert adapted is not None
    layer = kept_in_layer(shape, adapted.layers[-1], 8, dropout=False, fused=False)
    assert checkpoints(shape, adapted) == 5 * 256 * 4 + layer


def test_a_cache_by_hand() -> None:
    """Keys and values of 2 heads of 32 numbers in each of 4 layers; growing copies one layer's."""
    assert cached(shape_of(LLAMA)) == 2 * 64 * 4 * 4 + 2 * 64 * 4
