"""GPT-2: Conv1D layers, absolute positions, neither PAD nor chat template. The whole chain must not care."""

from __future__ import annotations

import torch
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
