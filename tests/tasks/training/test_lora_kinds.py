"""LoRA, rsLoRA and DoRA against their equations written out, on Linear and on Conv1D: forward, gradient, merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tasks.lora import LoRA
from tasks.training.models import add_adapter

KINDS = {
    "LoRA": LoRA(rank=3, alpha=6, target_modules=r".*(self_attn\.q_proj|attn\.c_attn)"),
    "rsLoRA": LoRA(rank=4, alpha=6, rslora=True, target_modules=r".*(self_attn\.q_proj|attn\.c_attn)"),
    "DoRA": LoRA(rank=3, alpha=6, dora=True, target_modules=r".*(self_attn\.q_proj|attn\.c_attn)"),
}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "Conv1D":
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=40))
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=40,
    ))  # fmt: skip


def adapted_layer(kind: str, lora: LoRA) -> Any:
    """The one layer with an adapter, none of its parts zero."""
    model = add_adapter(small(kind), lora)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A") and module.lora_A)
    torch.manual_seed(1)
    nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    for magnitude in layer.lora_magnitude_vector.values():
        magnitude.weight.data.mul_(1.3)
    return layer


def by_hand(layer: Any, lora: LoRA) -> tuple[Tensor, list[nn.Parameter]]:
    """W' (outputs, inputs) from the equations, through which gradients flow, and what trains."""
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.get_base_layer().weight
    weight = weight.T if layer.fan_in_fan_out else weight
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    tuned, trained = weight + scale * up @ down, [down, up]
    if lora.dora:  # the norm is taken for a constant (section 4.3 of the paper)
        magnitude = layer.lora_magnitude_vector["default"].weight
        tuned, trained = (magnitude / tuned.norm(dim=1).detach())[:, None] * tuned, [*trained, magnitude]
    return tuned, trained


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_forward_and_gradient_are_those_of_the_equations(kind: str, lora: LoRA) -> None:
    layer = adapted_layer(kind, lora)
    x, slope = torch.randn(5, 16), None
    y = layer(x)
    tuned, trained = by_hand(layer, lora)
    bias = layer.get_base_layer().bias
    wanted = x @ tuned.T + (0 if bias is None else bias)
    assert torch.allclose(y, wanted, atol=1e-5)
    slope = torch.randn_like(y)
    found = torch.autograd.grad((y * slope).sum(), trained)
    for ours, hand in zip(found, torch.autograd.grad((wanted * slope).sum(), trained), strict=True):
        assert torch.allclose(ours, hand, atol=1e-4) and hand.any()


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_a_merged_weight_is_that_of_the_equations(kind: str, lora: LoRA) -> None:
    layer = adapted_layer(kind, lora)
    wanted = by_hand(layer, lora)[0].detach()
    layer.merge()
    merged = layer.get_base_layer().weight
    assert torch.allclose(merged.T if layer.fan_in_fan_out else merged, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_every_kind_goes_through_the_chain_and_its_merge_is_proven(kitchen, base, demonstrations, pairs, reward, kind):
    """SFT, DPO and PPO on the same adapter, and the merge that verifies itself; nothing of the adapter is left out."""
    sft = kitchen.make(
        "sft", base=base.handle, data=demonstrations.handle, learning_rate=3e-3, eval_rows=0,
        lora={"rank": 4, "alpha": 8, kind: True},
    )  # fmt: skip
    dpo = kitchen.make("dpo", policy=sft.handle, data=pairs.handle, learning_rate=2e-3, eval_rows=0)
    ppo = kitchen.make(
        "ppo", policy=sft.handle, data=pairs.handle, reward=reward.handle, batch_size=8, total_episodes=16,
        num_mini_batches=2, max_new_tokens=6, learning_rate=1e-2, eval_rows=0,
    )  # fmt: skip
    from safetensors.torch import load_file

    starts = load_file(sft.handle.path / "adapter_model.safetensors")
    for made in (dpo, ppo):
        tensors = load_file(made.handle.path / "adapter_model.safetensors")
        assert tensors.keys() == starts.keys()
        assert any("magnitude" in name for name in tensors) == (kind == "dora")
        for name, tensor in tensors.items():
            assert not torch.equal(tensor, starts[name]), f"{name} was not trained"
        merged = kitchen.make("merge", adapter=made.handle, data=pairs.handle)
        assert merged.metrics["merge/max_logit_difference"] < 1e-4 < merged.metrics["merge/kl_from_base"] * 1e4
    report = kitchen.make("evaluate", policy=dpo.handle, data=pairs.handle, reference=sft.handle, max_prompts=4)
    assert report.metrics["eval/kl_to_reference"] != 0


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_proj", "nope"]}, "lora.target_modules: 'nope' matches no linear module"),
        (
            {"target_modules": ["model.layers.0.mlp.up_proj"], "top_layers": 1},
            "lora.top_layers: model.layers.0.mlp.up_proj",
        ),
        ({"rank": 65}, "lora.rank: wanted at most 32, the width of model.layers.0.self_attn.k_proj, got 65"),
        ({"target_modules": ["c_attn"]}, "'c_attn' matches no linear module; this base has down_proj, gate_proj,"),
        ({"target_modules": "self_attn.q_proj"}, "matches no linear module"),
    ],
)
@pytest.mark.parametrize("uses", ["sft", "orpo", "ppo"])
def test_the_plan_refuses_what_does_not_fit_the_base(kitchen, base, demonstrations, pairs, uses, lora, message):
    data = {"data": (demonstrations if uses == "sft" else pairs).handle}
    start = {("base" if uses == "sft" else "policy"): base.handle}
    scored = {"programs": {"checks": 1.0}} if uses == "ppo" else {}
    assert message in str(kitchen.stage(uses, lora=lora, **start, **data, **scored).input_problem())
    assert kitchen.stage(uses, lora={"rank": 32}, **start, **data, **scored).input_problem() is None
