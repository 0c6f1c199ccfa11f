"""Adapters on a base in 4 bits: what the 4 bits are, that every method trains on them, and where the result goes."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from artifacts.errors import ModelError, StageError
from artifacts.kinds import Quantized
from tasks.lora import LoRA
from tasks.training.logps import padded
from tasks.training.models import ADAPTER_FILE, add_adapter, load_checkpoint, load_model, parameter_counts
from tasks.training.quantized import Dequantised, quantized_layers
from tasks.training.rows import load_rows
from tasks.training.weight_files import WeightFiles

LORA = {"rank": 4, "alpha": 8}
SHORT = {"learning_rate": 3e-3, "max_steps": 3, "eval_rows": 4}
SAMPLED = {"batch_size": 8, "total_episodes": 16, "max_new_tokens": 6, "learning_rate": 1e-2, "eval_rows": 2}
NAME = "model.layers.0.self_attn.q_proj"
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""arXiv:2305.14314, appendix E."""


@pytest.fixture(scope="module")
def base4(kitchen, base) -> Any:
    return kitchen.make("quantize", base=base.handle)


@pytest.fixture(scope="module")
def sft4(kitchen, base4, demonstrations) -> Any:
    return kitchen.make("sft", base=base4.handle, data=demonstrations.handle, learning_rate=1e-2, lora=LORA)


def by_hand(weight: Tensor) -> Tensor:
    """Blocks of 64: divide by the largest magnitude, take the nearest value, multiply again."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[:, :, None] / scale[:, :, None] - NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * scale).reshape(weight.shape)


@pytest.mark.parametrize(("double", "off"), [(False, 1e-7), (True, 0.02)])
def test_a_quantised_weight_is_the_nearest_of_sixteen_values_in_its_block(kitchen, base, double, off):
    made = kitchen.make("quantize", base=base.handle, double_quant=double)
    before, after = WeightFiles(base.handle.path), Dequantised(made.handle)
    assert set(after) == set(before)
    for name in after.quantised:
        wanted = by_hand(before[name])
        assert (after[name] - wanted).norm() <= off * wanted.norm()
    for name in set(after) - after.quantised:
        assert torch.equal(after[name], before[name])
    assert 0.05 < made.metrics["quantize/relative_error"] < 0.15
    assert made.metrics["quantize/quantized"] == sum(before[name].numel() for name in after.quantised)


def test_parameters_are_counted_as_weights_and_not_as_bytes(base, base4):
    model = add_adapter(load_checkpoint(base4.handle, "cpu"), LoRA(**LORA))
    whole = add_adapter(load_checkpoint(base.handle, "cpu"), LoRA(**LORA))
    assert parameter_counts(model) == parameter_counts(whole)
    assert model.get_nb_trainable_parameters() == tuple(reversed(parameter_counts(model)))


def test_forward_and_gradient_are_those_of_the_multiplied_out_weight(kitchen, base):
    exact = kitchen.make("quantize", base=base.handle, compute_dtype="float32").handle
    model = add_adapter(load_checkpoint(exact, "cpu"), LoRA(**LORA))
    layer = model.get_submodule(f"base_model.model.{NAME}")
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up, std=0.3)
    x = torch.randn(5, 64, requires_grad=True)
    found, wanted = layer(x), x @ (Dequantised(exact)[f"{NAME}.weight"] + 2 * up @ down).T
    assert torch.allclose(found, wanted, atol=1e-5)
    slope = torch.randn_like(found)
    ours, hand = (torch.autograd.grad((y * slope).sum(), [x, down, up]) for y in (found, wanted))
    for one, other in zip(ours, hand, strict=True):
        assert torch.allclose(one, other, atol=1e-4) and other.any()


def gradients(sft4: Any, rows: list[dict[str, Any]], *, evaluated_before: bool) -> dict[str, Tensor]:
    model = load_model(sft4.handle, "cpu", trainable=True)
    batch = padded([row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows], 0, "cpu")
    if evaluated_before:
        model.eval()
        with torch.no_grad():
            model(**batch)
        model.train()
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_training_after_an_evaluation_gives_every_adapter_the_same_gradient(sft4, demonstrations):
    rows = load_rows(demonstrations.handle, "train")[:4]
    before, after = (gradients(sft4, rows, evaluated_before=evaluated) for evaluated in (False, True))
    assert len(before) == 2 * 2 * 7
    for name, gradient in before.items():
        assert gradient.any() and torch.equal(gradient, after[name]), name


@pytest.mark.parametrize("uses", ["sft", "reward", "dpo", "simpo", "orpo", "kto", "ppo", "rloo", "grpo"])
def test_every_method_trains_on_it(kitchen, base4, sft4, demonstrations, pairs, feedback, uses):
    fresh = uses in ("sft", "reward", "orpo")
    fields: dict[str, Any] = {"data": {"sft": demonstrations, "kto": feedback}.get(uses, pairs).handle}
    if fresh:
        fields |= {"policy" if uses == "orpo" else "base": base4.handle, "lora": LORA, **SHORT}
    elif uses in ("ppo", "rloo", "grpo"):
        fields |= {"policy": sft4.handle, "programs": {"checks": 1.0}, "missing_eos_penalty": 0.5, **SAMPLED}
    else:
        fields |= {"policy": sft4.handle, **SHORT}
    made = kitchen.make(uses, **fields)
    tensors = load_file(made.handle.path / ADAPTER_FILE)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    if fresh:
        assert all(tensor.any() for tensor in tensors.values())
    elif uses in ("dpo", "simpo", "kto", "ppo"):
        start = load_file(sft4.handle.path / ADAPTER_FILE)
        assert not any(torch.equal(tensor, start[name]) for name, tensor in tensors.items())


def test_sampling_leaves_the_base_as_it_is_and_samples_from_what_was_trained(kitchen, sft4, pairs):
    from tasks.training.sampling import merged

    model, ids = load_model(sft4.handle, "cpu"), torch.tensor([[5, 9, 40]])
    with torch.no_grad():
        tuned = model(ids).logits
        weights = {name: layer.weight.data.clone() for name, layer in quantized_layers(model)}
        with merged(model):
            assert torch.equal(model(ids).logits, tuned)
        assert torch.equal(model(ids).logits, tuned)
    for name, layer in quantized_layers(model):
        assert torch.equal(layer.weight.data, weights[name])


def test_a_merge_goes_into_either_kind_of_weights_and_says_how_far_each_is_off(kitchen, base, base4, sft4, pairs):
    adapter = load_file(sft4.handle.path / ADAPTER_FILE)
    a, b = (adapter[f"base_model.model.{NAME}.lora_{side}.weight"] for side in "AB")
    found = {}
    for into, weights in (("original", WeightFiles(base.handle.path)), ("dequantised", Dequantised(base4.handle))):
        made = kitchen.make("merge", adapter=sft4.handle, data=pairs.handle, into=into)
        merged = load_file(made.handle.path / "model.safetensors")
        assert torch.allclose(merged[f"{NAME}.weight"], weights[f"{NAME}.weight"] + 2 * b @ a, atol=1e-6)
        assert not isinstance(made.handle, Quantized)
        assert kitchen.make("evaluate", policy=made.handle, data=pairs.handle, max_prompts=2).metrics["eval/loss"] > 0
        found[into] = made.metrics["merge/kl_to_saved"]
    assert 0 < 10 * found["dequantised"] < found["original"]
    with pytest.raises(StageError, match=r"the step to the unquantised weights lost the tuning.*dequantised"):
        kitchen.make("merge", adapter=sft4.handle, data=pairs.handle, max_kl_share=1e-4)


OTHER_KINDS = {
    "rsLoRA": {**LORA, "rslora": True},
    "DoRA": {**LORA, "dora": True},
    "new tokens": {**LORA, "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_kind_of_adapter_comes_from_4_bits_into_either_kind_of_weights(kitchen, demonstrations, pairs, kind):
    base = kitchen.make("base", source="builtin:tiny-llama", add_tokens=("<|user|>",)).handle
    base4 = kitchen.make("quantize", base=base).handle
    data = [kitchen.make("data", **{**dict(each.stage), "base": base}).handle for each in (demonstrations, pairs)]
    lora = OTHER_KINDS[kind]
    adapter = kitchen.make("sft", base=base4, data=data[0], learning_rate=1e-2, lora=lora, eval_rows=0).handle
    trained = load_file(adapter.path / ADAPTER_FILE)
    a, b = (trained[f"base_model.model.{NAME}.lora_{side}.weight"] for side in "AB")
    off = {}
    for into, weights in (("original", WeightFiles(base.path)), ("dequantised", Dequantised(base4))):
        made = kitchen.make("merge", adapter=adapter, data=data[1], into=into)
        wanted = weights[f"{NAME}.weight"] + (4 if kind == "rsLoRA" else 2) * b @ a
        if kind == "DoRA":
            magnitude = trained[f"base_model.model.{NAME}.lora_magnitude_vector"]
            wanted *= (magnitude / wanted.norm(dim=1))[:, None]
        merged = load_file(made.handle.path / "model.safetensors")
        assert torch.allclose(merged[f"{NAME}.weight"], wanted, atol=1e-5)
        whole = trained if kind == "new tokens" else weights
        name = "base_model.model.model.embed_tokens.weight" if kind == "new tokens" else "model.embed_tokens.weight"
        assert torch.equal(merged["model.embed_tokens.weight"], whole[name])
        off[into] = made.metrics["merge/kl_to_saved"]
    assert 0 < 10 * off["dequantised"] < off["original"]


def test_gpt2s_turned_weights_come_back_the_right_way_round(kitchen):
    """Also the square ones, whose shape tells nothing."""
    base = kitchen.make("base", source="builtin:tiny-gpt2").handle
    four = kitchen.make("quantize", base=base)
    before, after = WeightFiles(base.path), Dequantised(four.handle)
    for name in after.quantised:
        assert (after[name] - before[name]).norm() < 0.2 * before[name].norm()
    common = {"base": base, "template": "alpaca", "limit": 24, "form": "demonstrations"}
    rows = kitchen.make("data", source="instructions.jsonl", **common).handle
    sft = kitchen.make("sft", base=four.handle, data=rows, lora=LORA, learning_rate=1e-2, eval_rows=0).handle
    for into in ("original", "dequantised"):
        made = kitchen.make("merge", adapter=sft, data=rows, into=into)
        assert made.metrics["merge/kl_to_saved"] < 0.5 * made.metrics["merge/kl_from_base"]


def test_what_cannot_be_is_refused(kitchen, base, base4, sft, sft4, demonstrations, pairs):
    with pytest.raises(ValidationError, match=r"weights in 4 bits can't be trained; give `lora: \{\}`"):
        kitchen.stage("sft", base=base4.handle, data=demonstrations.handle, lora=None)
    with pytest.raises(ValidationError, match="weights in 4 bits can't be trained"):
        kitchen.stage("dpo", policy=base4.handle, data=pairs.handle)
    with pytest.raises(ValidationError, match="in 4 bits already"):
        kitchen.stage("quantize", base=base4.handle)
    with pytest.raises(ModelError, match="quantised already"):
        kitchen.stage("base", source=str(base4.handle.path))
    with pytest.raises(ValidationError, match="not quantised; leave it out"):
        kitchen.stage("merge", adapter=sft.handle, data=pairs.handle, into="dequantised")
    with pytest.raises(ModelError, match=r"rank: wanted at most 32, the width of .*k_proj, got 33"):
        kitchen.make("sft", base=base.handle, data=demonstrations.handle, lora={"rank": 33})


def test_a_device_without_a_kernel_is_named_before_anything_is_trained(kitchen, base, monkeypatch):
    """The library's own failure, as it comes on a GPU that it was not built for."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", fails)
    with pytest.raises(ModelError, match=r"no 4-bit kernel for this CPU .*no kernel image.*unquantised base"):
        kitchen.make("quantize", base=base.handle, quant_type="fp4")
