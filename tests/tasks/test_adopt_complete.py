"""A complete model from elsewhere: ours keeps its bytes, transformers' is branched from, another base's is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint
from tasks.training.models import load_model, load_tokenizer

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.fixture
def tuned(kitchen, base, demonstrations) -> Any:
    """An SFT of all weights."""
    return kitchen.make("sft", base=base.handle, data=demonstrations.handle, lora=None, max_steps=2, eval_rows=0)


def copied(tuned: Any, folder: Path, change: Change) -> Path:
    shutil.copytree(tuned.handle.path, folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_one_of_ours_keeps_its_bytes_and_is_what_it_was_for_other_stages(kitchen, base, pairs, tuned):
    adopted = kitchen.make("adopt", base=base.handle, source=str(tuned.handle.path), complete=True)
    assert isinstance(adopted.handle, Checkpoint)
    assert adopted.handle.digest() == tuned.handle.digest()
    ours, theirs = (
        kitchen.make("dpo", policy=model.handle, data=pairs.handle, max_steps=2, eval_rows=0)
        for model in (tuned, adopted)
    )
    assert ours.handle.digest() == theirs.handle.digest()


def test_one_that_transformers_saved_with_its_head_twice_and_no_tokenizer(kitchen, base, tmp_path):
    torch.manual_seed(3)
    model = load_model(base.handle, "cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    adopted = kitchen.make("adopt", base=base.handle, source=str(tmp_path / "theirs"), complete=True)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(load_model(adopted.handle, "cpu")(ids).logits, model.eval()(ids).logits)
    assert load_tokenizer(adopted.handle).get_vocab() == load_tokenizer(base.handle).get_vocab()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config, tensors: config.update(rope_theta=5.0, rope_parameters=None), "config.json has rope_"),
        (lambda config, tensors: tensors.pop("model.norm.weight"), "1 tensors are missing, such as model.norm"),
        (lambda config, tensors: tensors.update(odd=torch.ones(2)), "1 tensors have no place, such as odd"),
        (
            lambda config, tensors: tensors.update({"model.norm.weight": torch.ones(3)}),
            r"norm.weight has the shape \(3,",
        ),
        (lambda config, tensors: tensors["model.norm.weight"].fill_(float("nan")), "are not finite"),
        (
            lambda config, tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}),
            "lm_head.weight is not model.embed_tokens.weight, which are one matrix",
        ),
    ],
    ids=["configuration", "missing", "left over", "shape", "NaN", "untied head"],
)
def test_one_that_was_not_tuned_from_the_base_is_refused(kitchen, base, tuned, tmp_path, change, said):
    folder = copied(tuned, tmp_path / "theirs", change)
    with pytest.raises(ModelError, match=said):
        kitchen.make("adopt", base=base.handle, source=str(folder), complete=True)


def test_another_vocabulary_is_refused(kitchen, base, tuned, tmp_path):
    folder = copied(tuned, tmp_path / "theirs", lambda config, tensors: None)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.__getitem__)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"its token 40 is .* the base's .*; what was tuned with a vocabulary"):
        kitchen.make("adopt", base=base.handle, source=str(folder), complete=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
            "its chat template is not the base's",
        ),
        (
            lambda folder: swap(folder / "tokenizer_config.json", "<|im_end|>", "<|im_start|>"),
            "its EOS is not the base's",
        ),
    ],
    ids=["chat template", "EOS"],
)
def test_another_template_or_end_is_refused_since_the_bases_would_be_used(kitchen, base, tuned, tmp_path, change, said):
    folder = copied(tuned, tmp_path / "theirs", lambda config, tensors: None)
    change(folder)
    with pytest.raises(ModelError, match=said):
        kitchen.make("adopt", base=base.handle, source=str(folder), complete=True)


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_what_a_user_gave(kitchen, base, tuned, tmp_path, name):
    folder = copied(tuned, tmp_path / "theirs", lambda config, tensors: None)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="can't be loaded as a complete model: "):
        kitchen.make("adopt", base=base.handle, source=str(folder), complete=True)


def test_what_is_no_complete_model_is_refused_before_anything_runs(kitchen, base, sft, tmp_path):
    with pytest.raises(ModelError, match="holds an adapter; leave `complete` out"):
        kitchen.stage("adopt", base=base.handle, source=str(sft.handle.path), complete=True)
    with pytest.raises(ModelError, match=r"has no config.json; wanted a folder that transformers saved"):
        kitchen.stage("adopt", base=base.handle, source=str(tmp_path), complete=True)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="only a pickle, which runs code"):
        kitchen.stage("adopt", base=base.handle, source=str(tmp_path), complete=True)
