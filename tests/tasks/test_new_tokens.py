"""New tokens where rows are not one to a token: rows to spare, heads of their own, ids with gaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig, LlamaConfig, PreTrainedTokenizerFast

from artifacts.errors import ModelError, RecipeError
from artifacts.kinds import Checkpoint
from artifacts.store import Store
from pipelines.plan import make_plan
from pipelines.recipe import load_recipe
from tasks.tiny import build_tiny
from tests.conftest import chain, run_stage

NEW = ("<|user|>", "<|end|>")
KNOWN = 259
"""Tokens of the tiny models."""
FAR = 270
ENDS = {
    "llama": ["model.embed_tokens.weight"],
    "llama with a head": ["model.embed_tokens.weight", "lm_head.weight"],
    "gptj": ["transformer.wte.weight", "lm_head.weight", "lm_head.bias"],
}
"""Whose first dimension is the vocabulary."""


def model_with(kind: str, rows: int) -> Any:
    """Rows that are far from each other, those that no token has too."""
    config: Any = {"vocab_size": rows, "bos_token_id": None}
    if kind == "gptj":
        config = GPTJConfig(n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=32, **config)
    else:
        config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                             tie_word_embeddings=kind == "llama", **config)  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in end.parameters():
                parameter.normal_(mean=1.0)
    return model


def respelled(change: Callable[[dict[str, Any]], None]) -> Any:
    """The tiny tokenizer with another content."""
    from tokenizers import Tokenizer

    _, tokenizer = build_tiny("tiny-llama")
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    change(core)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token=tokenizer.eos_token, pad_token="<|pad|>"
    )


def with_a_far_one(core: dict[str, Any]) -> None:
    """A special token some ids after the last of the others."""
    core["model"]["vocab"]["<|far|>"] = FAR
    core["added_tokens"].append({**core["added_tokens"][0], "id": FAR, "content": "<|far|>"})


def with_a_hole(core: dict[str, Any]) -> None:
    """As many tokens as before, the last ones at later ids."""
    core["model"]["vocab"] = {token: at if at < 100 else at + 7 for token, at in core["model"]["vocab"].items()}


def grown(folder: Path, model: Any, tokenizer: Any, tokens: tuple[str, ...] = NEW) -> Checkpoint:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    made = run_stage("base", folder / "draft", source=str(folder / "model"), add_tokens=tokens)
    assert isinstance(made, Checkpoint)
    return made


def ends(folder: Path, kind: str) -> list[Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return [tensors[name] for name in ENDS[kind]]


@pytest.mark.parametrize("kind", ENDS)
def test_spare_rows_are_taken_and_no_other_row_moves_by_a_bit(kind: str, tmp_path: Path) -> None:
    base = grown(tmp_path, model_with(kind, 280), build_tiny("tiny-llama")[1])
    ids = AutoTokenizer.from_pretrained(base.path).convert_tokens_to_ids(list(NEW))
    assert ids == [KNOWN, KNOWN + 1]
    others = [row for row in range(280) if row not in ids]
    for before, after in zip(ends(tmp_path / "model", kind), ends(base.path, kind), strict=True):
        assert after.shape == before.shape, "there was room"
        assert torch.equal(after[others], before[others])
        assert torch.allclose(after[ids], before[:KNOWN].mean(dim=0).expand_as(after[ids]), atol=1e-6)


@pytest.mark.parametrize("kind", ENDS)
def test_a_model_without_room_gets_as_many_rows_as_it_lacks(kind: str, tmp_path: Path) -> None:
    """One row to spare, and two tokens."""
    base = grown(tmp_path, model_with(kind, KNOWN + 1), build_tiny("tiny-llama")[1])
    for before, after in zip(ends(tmp_path / "model", kind), ends(base.path, kind), strict=True):
        assert len(after) == KNOWN + 2 and torch.equal(after[:KNOWN], before[:KNOWN])
        assert torch.allclose(after[KNOWN:], before[:KNOWN].mean(dim=0).expand_as(after[KNOWN:]), atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(base.path).config.vocab_size == KNOWN + 2


@pytest.mark.parametrize(("change", "gap"), [(with_a_far_one, KNOWN), (with_a_hole, 100)])
def test_where_ids_have_gaps_new_tokens_are_refused(change: Callable[..., None], gap: int, tmp_path: Path) -> None:
    """The library counts tokens to find an id: it gives ids that are taken, or others when the files are read."""
    with pytest.raises(ModelError, match=f"add_tokens: no token of the vocabulary has the id {gap}, though later"):
        grown(tmp_path, model_with("llama", 280), respelled(change))
    assert not (tmp_path / "draft" / "out" / "model.safetensors").exists()


def test_the_ids_of_new_tokens_are_those_that_the_files_give(tmp_path: Path) -> None:
    """What the refusal above is for: here saving and loading changes none."""
    base = grown(tmp_path, model_with("llama", 280), build_tiny("tiny-llama")[1])
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    written = {
        one["content"]: one["id"] for one in json.loads((base.path / "tokenizer.json").read_text())["added_tokens"]
    }
    for token in NEW:
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [written[token]]
    assert sorted(tokenizer.get_vocab().values()) == list(range(KNOWN + 2))


def test_a_token_without_a_name_is_refused_by_the_plan(write_recipe: Callable[..., Path], store: Store) -> None:
    recipe = chain()
    recipe["stages"]["base"]["add_tokens"] = ["<|user|>", ""]
    with pytest.raises(RecipeError, match=r"base\.add_tokens\.1: .*at least 1 character"):
        make_plan(load_recipe(write_recipe(recipe)), store)
