"""GPT-2: Conv1D layers, absolute positions, neither PAD nor chat template. The whole chain must not care."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.training.models import load_model, load_tokenizer


def test_a_small_gpt2_goes_through_the_whole_chain(kitchen):
    base = kitchen.make("base", source="builtin:tiny-gpt2").handle
    tokenizer = load_tokenizer(base)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    common = {"base": base, "template": "alpaca", "limit": 24}
    rows = kitchen.make("data", form="demonstrations", source="instructions.jsonl", **common).handle
    pairs = kitchen.make(
        "data", form="preferences", source="preferences.jsonl", test_source="validation.jsonl", **common
    ).handle
    lora = {"rank": 4, "target_modules": ["c_attn", "c_proj", "c_fc"]}
    sft = kitchen.make("sft", base=base, data=rows, lora=lora, learning_rate=3e-3, eval_rows=4).handle
    reward = kitchen.make("reward", base=base, data=pairs, lora=lora, eval_rows=4).handle
    dpo = kitchen.make("dpo", policy=sft, data=pairs, learning_rate=1e-3, eval_rows=4).handle
    merge = kitchen.make("merge", adapter=dpo, data=pairs).handle
    report = kitchen.make(
        "evaluate", policy=merge, data=pairs, reward=reward, reference=sft, max_prompts=6, max_new_tokens=5
    )
    assert report.metrics["eval/prompts"] == 6
    ids = torch.tensor([[40, 41, 42]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(merge.path)(ids).logits
        assert torch.allclose(merged, load_model(dpo, "cpu")(ids).logits, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_merged_conv1d_is_that_of_the_equations(kitchen, dora):
    """Conv1D keeps W as (inputs, outputs). W + (alpha / r) B A, for DoRA with rows of the length m."""
    base = kitchen.make("base", source="builtin:tiny-gpt2").handle
    rows = kitchen.make(
        "data", base=base, template="alpaca", limit=24, form="demonstrations", source="instructions.jsonl"
    ).handle
    lora = {"rank": 4, "alpha": 8, "dora": dora, "target_modules": ["c_attn", "c_proj"]}
    sft = kitchen.make("sft", base=base, data=rows, lora=lora, learning_rate=1e-2, max_steps=3, eval_rows=0).handle
    merge = kitchen.make("merge", adapter=sft, data=rows).handle
    tensors = load_file(sft.path / "adapter_model.safetensors")
    start, merged = (load_file(one.path / "model.safetensors") for one in (base, merge))
    for name in ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"):
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        wanted = start[f"{name}.weight"].T + 2 * b @ a
        if dora:
            magnitude = tensors[f"base_model.model.{name}.lora_magnitude_vector"]
            wanted = magnitude[:, None] * wanted / wanted.norm(dim=1, keepdim=True)
        assert torch.allclose(merged[f"{name}.weight"].T, wanted, atol=1e-6)
        assert not torch.allclose(merged[f"{name}.weight"], start[f"{name}.weight"], atol=1e-4)
