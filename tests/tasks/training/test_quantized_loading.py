"""A base in 4 bits as it is loaded: float32 beside its 4 bits whatever it was made from, and only with a kernel."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from artifacts.errors import ModelError
from tasks.training.models import load_model
from tasks.training.quantized import load_quantized, quantized_layers

LORA = {"rank": 4, "alpha": 8}
CLASSES = {"policy": AutoModelForCausalLM, "reward model": AutoModelForSequenceClassification}


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gpt2"])
def half4(kitchen, request) -> Any:
    """4 bits made from a base in bfloat16; tiny-gpt2 has biases in its 4-bit layers."""
    base = kitchen.make("base", source=f"builtin:{request.param}", dtype="bfloat16")
    return kitchen.make("quantize", base=base.handle)


def states_of(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(torch.arange(5, 25)[None], output_hidden_states=True)
    return [*found.hidden_states, found.logits]


@pytest.mark.parametrize("kind", CLASSES)
def test_beside_its_4_bits_a_base_from_half_precision_is_float32(half4, kind):
    more = {"num_labels": 1} if kind == "reward model" else {}
    model = load_quantized(half4.handle, "cpu", CLASSES[kind], **more)
    in_4_bits = dict(quantized_layers(model))
    biases = {f"{name}.bias" for name in in_4_bits}
    others = {
        name: parameter for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and name not in biases
    }  # fmt: skip
    assert in_4_bits and any("norm" in name or "ln_" in name for name in others)
    assert any(parameter is model.get_input_embeddings().weight for parameter in others.values())
    assert {name for name, parameter in others.items() if parameter.dtype != torch.float32} == set()
    for layer in in_4_bits.values():
        assert (layer.weight.dtype, layer.compute_dtype) == (torch.uint8, torch.bfloat16)


def test_its_embeddings_are_those_of_the_files_and_its_states_float32(half4):
    model = load_model(half4.handle, "cpu")
    kept = load_file(half4.handle.path / "model.safetensors")
    name = next(name for name in kept if name.endswith(("embed_tokens.weight", "wte.weight")))
    assert kept[name].dtype == torch.bfloat16
    assert torch.equal(model.get_input_embeddings().weight, kept[name].float())
    assert {state.dtype for state in states_of(model)} == {torch.float32}


def fails(*args: Any, **kwargs: Any) -> None:
    """As it comes on a GPU that the library was not built for."""
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


@pytest.mark.parametrize("uses", ["sft", "evaluate"])
def test_where_there_is_no_kernel_a_base_that_is_there_already_is_refused_too(
    kitchen, base, demonstrations, monkeypatch, uses
):
    """It was quantised on another machine, say."""
    there = kitchen.make("quantize", base=base.handle)
    start = {"base": there.handle, "lora": LORA} if uses == "sft" else {"policy": there.handle}
    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", fails)
    with pytest.raises(ModelError, match=r"no 4-bit kernel for this CPU .*no kernel image.*unquantised base"):
        kitchen.make(uses, data=demonstrations.handle, **start)
