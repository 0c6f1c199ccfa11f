"""A merge in several files: an index that counts what is there, also where embeddings and head become two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tasks.tiny import build_tiny
from tasks.training import model_files
from tasks.training.models import load_model
from tasks.training.weight_files import INDEX


@pytest.fixture(scope="module")
def sharded(kitchen: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A base in several files, whose head is its embeddings."""
    _, tokenizer = build_tiny("tiny-llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    ))  # fmt: skip
    folder = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files, "SHARD", "100KB")
        made = kitchen.make("base", source=str(folder))
    assert len(list(made.handle.path.glob("*.safetensors"))) > 2
    return made


@pytest.fixture(scope="module")
def data(kitchen: Any, sharded: Any) -> Any:
    return kitchen.make(
        "data", base=sharded.handle, form="demonstrations", source="instructions.jsonl", limit=8
    )  # fmt: skip


@pytest.fixture(params=["embed_tokens", "lm_head"])
def apart(kitchen: Any, sharded: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """peft's adapter in which embeddings and head went apart."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], modules_to_save=[request.param],
                        task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(1)
    model = get_peft_model(load_model(sharded.handle, "cpu"), config)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "modules_to_save" in name).mul_(1.1)
    model.save_pretrained(tmp_path / "adapter")
    return kitchen.make("adopt", base=sharded.handle, source=str(tmp_path / "adapter"))


def index_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / INDEX).read_text()))


def counted(folder: Path) -> dict[str, Any]:
    """What the index should say, from the files themselves."""
    files = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    tensors = [tensor for file in files.values() for tensor in file.values()]
    return {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in tensors),
            "total_parameters": sum(tensor.numel() for tensor in tensors),
        },
        "weight_map": {tensor: name for name, file in files.items() for tensor in file},
    }


def test_the_index_of_an_untied_merge_counts_both_matrices_and_it_loads(kitchen, sharded, data, apart):
    merged = kitchen.make("merge", adapter=apart.handle, data=data.handle)
    index = index_of(merged.handle.path)
    assert index == counted(merged.handle.path)
    before, added = index_of(sharded.handle.path)["metadata"], 259 * 64
    assert before == counted(sharded.handle.path)["metadata"]
    assert index["metadata"]["total_parameters"] == before["total_parameters"] + added
    assert index["metadata"]["total_size"] == before["total_size"] + 4 * added
    model, found = AutoModelForCausalLM.from_pretrained(merged.handle.path, output_loading_info=True)
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert sum(p.numel() for p in model.parameters()) == index["metadata"]["total_parameters"]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).logits, load_model(apart.handle, "cpu")(ids).logits, atol=1e-4)


def test_the_room_that_the_plan_asks_for_holds_both_matrices(kitchen, sharded, data, apart):
    merged = kitchen.make("merge", adapter=apart.handle, data=data.handle)
    assert merged.stage.disk_bytes() == counted(merged.handle.path)["metadata"]["total_size"]


def test_a_merge_that_stays_tied_keeps_the_index(kitchen, sharded, data):
    lora = {"rank": 2, "modules_to_save": ["embed_tokens"]}
    tuned = kitchen.make("sft", base=sharded.handle, data=data.handle, lora=lora, max_steps=2, eval_rows=0,
                         learning_rate=1e-2)  # fmt: skip
    merged = kitchen.make("merge", adapter=tuned.handle, data=data.handle)
    assert index_of(merged.handle.path) == index_of(sharded.handle.path) == counted(merged.handle.path)
    model = AutoModelForCausalLM.from_pretrained(merged.handle.path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
