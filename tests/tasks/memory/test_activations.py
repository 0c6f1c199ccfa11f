"""What a backward pass waits for is counted in closed form; here beside what torch really keeps, and beside hand-made
numbers."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tasks.lora import LoRA
from tasks.memory.activations import cached, checkpoints, copies, kept, kept_in_layer
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


class Saved:
    """What one operation has saved, for as long as its backward pass may come."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def adapted_by(lora: LoRA) -> Adapted:
    adapted = Adapted.fresh(shape_of(LLAMA), lora)
    assert adapted is not None
    return adapted


def really_kept(model: Any, config: Any) -> int:
    """Bytes of all that a forward pass over a padded batch has saved for its backward pass when it is over, each piece
    of memory once. (DoRA's norms are taken of products whose graph is dropped at once.)"""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: WeakSet[Saved] = WeakSet()

    def pack(tensor: torch.Tensor) -> Saved:
        saved.add(kept := Saved(tensor))
        return kept

    ids = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, WIDTH - 5 :] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        states = trunk_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert states.requires_grad
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in saved}
    return sum(size for place, size in storages.items() if place not in own)


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
        (LLAMA, "float32", LoRA(rank=8, dora=True), False),
        (LLAMA, "bfloat16", LoRA(rank=8, dora=True), False),
        (LLAMA, "float32", None, False),
        (GPT2, "float32", LoRA(rank=8), False),
        (GPT2, "float32", LoRA(rank=8, dora=True), False),
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
    adapted = lora and Adapted.fresh(shape, lora)
    counted = ROWS * WIDTH * kept(shape, adapted, WIDTH, fused=fused) + copies(shape, adapted)
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
    shape, adapted = shape_of(LLAMA), adapted_by(LoRA(rank=8))
    by_hand = 8 * 256 + 16 * 256 + 12 * 640 + 4 * (256 + 256 + 640) + 4 * 7 * 8
    assert kept_in_layer(shape, adapted.layers[0], adapted) == by_hand
    with_magnitudes = by_hand + (4 + 4) * (3 * 256 + 2 * 64 + 2 * 640)
    dora = adapted_by(LoRA(rank=8, dora=True))
    assert kept_in_layer(shape, dora.layers[0], dora) == with_magnitudes


def test_a_layer_in_half_precision_by_hand() -> None:
    """States take 2 bytes, norms 4 still, and peft makes a float32 input for each of the seven adapters."""
    shape, adapted = shape_of(LLAMA, "bfloat16"), adapted_by(LoRA(rank=8))
    by_hand = 8 * 256 + 8 * 256 + 6 * 640 + 4 * (6 * 256 + 640) + 4 * 7 * 8
    assert kept_in_layer(shape, adapted.layers[0], adapted) == by_hand


def test_checkpoints_by_hand() -> None:
    """What enters the four layers and leaves the last one, and one layer's all."""
    shape, adapted = shape_of(LLAMA), adapted_by(LoRA(rank=8))
    layer = kept_in_layer(shape, adapted.layers[-1], adapted)
    assert checkpoints(shape, adapted) == 5 * 256 * 4 + layer


def test_a_cache_by_hand() -> None:
    """Keys and values of 2 heads of 32 numbers in each of 4 layers; growing copies one layer's."""
    assert cached(shape_of(LLAMA)) == 2 * 64 * 4 * 4 + 2 * 64 * 4
