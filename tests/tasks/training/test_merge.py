from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from artifacts.errors import StageError
from tasks.training.models import load_model
from tasks.training.rows import load_rows


def test_the_merged_model_loads_plainly_and_answers_as_base_plus_adapter(merge, dpo, pairs):
    merged = AutoModelForCausalLM.from_pretrained(merge.handle.path).eval()
    tuned = load_model(dpo.handle, "cpu")
    for row in load_rows(pairs.handle, "test")[:4]:
        ids = torch.tensor([row["prompt_ids"]])
        with torch.no_grad():
            assert torch.allclose(merged(ids).logits, tuned(ids).logits, atol=1e-4)


def test_a_merged_weight_is_w_plus_alpha_over_r_b_a(merge, dpo, base):
    from safetensors.torch import load_file

    name = "model.layers.0.self_attn.q_proj"
    adapter = load_file(dpo.handle.path / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    start, merged = (load_file(one.handle.path / "model.safetensors")[f"{name}.weight"] for one in (base, merge))
    assert torch.allclose(merged, start + (8 / 4) * b @ a, atol=1e-6)
    assert not torch.equal(merged, start)


def test_tokenizer_and_template_go_with_it_byte_for_byte(merge, base):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (merge.handle.path / name).read_bytes() == (base.handle.path / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(merge.handle.path)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_an_adapter_that_changes_nothing_is_refused(kitchen, base, demonstrations, pairs):
    idle = kitchen.make(
        "sft", base=base.handle, data=demonstrations.handle, max_steps=1, learning_rate=1e-30, eval_rows=0
    )
    with pytest.raises(StageError, match="changes nothing"):
        kitchen.make("merge", adapter=idle.handle, data=pairs.handle)


def test_a_merge_whose_rounding_loses_the_tuning_is_refused(kitchen, demonstrations):
    coarse = kitchen.make("base", source="builtin:tiny-llama", dtype="bfloat16")
    data = kitchen.make("data", base=coarse.handle, form="demonstrations", source="instructions.jsonl", limit=32)
    faint = kitchen.make(
        "sft", base=coarse.handle, data=data.handle, max_steps=1, learning_rate=1e-6, warmup_ratio=0, eval_rows=0
    )
    with pytest.raises(StageError, match=r"lost the tuning|changes nothing"):
        kitchen.make("merge", adapter=faint.handle, data=data.handle)


def test_the_card_says_what_made_it_and_holds_no_path(merge, kitchen):
    card = (merge.handle.path / "README.md").read_text()
    for said in ("builtin:tiny-llama", "### sft", "### dpo", "beta 0.3", "licence of the base", "kl_to_saved"):
        assert said in card
    assert "\n- settings: " in card and "\n- data or weights: " in card and "\n- measured: " in card
    assert str(kitchen.store.home) not in card
    assert json.loads((merge.handle.path / "config.json").read_text())["model_type"] == "llama"
