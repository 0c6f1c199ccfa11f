"""An adapter from elsewhere: the same bytes if it is ours, usable if it is peft's, refused if anything does not fit."""

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
from tasks.context import Context, Execution, MetricsLog, Progress
from tasks.training.models import load_model


@pytest.fixture
def copy(sft: Any, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the SFT's adapter, changed."""

    def make(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path / "theirs"
        folder.mkdir()
        config = json.loads((sft.handle.path / "adapter_config.json").read_text())
        tensors = load_file(sft.handle.path / "adapter_model.safetensors")
        change(config, tensors)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def test_one_of_ours_keeps_its_bytes_wherever_it_lies(kitchen, base, sft, tmp_path):
    shutil.copytree(sft.handle.path, tmp_path / "elsewhere")
    adopted = kitchen.make("adopt", base=base.handle, source=str(tmp_path / "elsewhere"))
    assert adopted.handle.digest() == sft.handle.digest()
    again = kitchen.make("adopt", base=base.handle, source=str(sft.handle.path))
    assert again.handle.key == adopted.handle.key


def test_one_that_peft_saved_answers_as_it_did_and_can_be_trained_on(kitchen, base, pairs, tmp_path, capfd):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(load_model(base.handle, "cpu"), config)
    theirs.save_pretrained(tmp_path / "theirs")
    adopted = kitchen.make("adopt", base=base.handle, source=str(tmp_path / "theirs"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(load_model(adopted.handle, "cpu")(ids).logits, theirs.eval()(ids).logits)
    assert "that its tensors fit is all that can be checked" in capfd.readouterr().out
    dpo = kitchen.make("dpo", policy=adopted.handle, data=pairs.handle, max_steps=2, eval_rows=0)
    assert dpo.metrics["train/loss"] > 0


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[min(tensors)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda config, tensors: config.update(base_model_name_or_path="f" * 64),
            "was trained on the base ffffffffffff",
        ),
        (lambda config, tensors: drop(tensors), "1 tensors are missing, such as base_model"),
        (lambda config, tensors: tensors.update({"base_model.odd.lora_A.weight": torch.ones(2)}), "1 have no place"),
        (lambda config, tensors: config.update(r=2), "has the shape"),
        (lambda config, tensors: config.update(target_modules=["no_proj"]), "does not fit the base"),
        (lambda config, tensors: config.update(peft_type="IA3"), "wanted a LoRA adapter, got IA3"),
        (lambda config, tensors: config.update(modules_to_save=["lm_head"]), "missing, such as .*lm_head"),
        (lambda config, tensors: config.update(bias="lora_only"), "has bias: lora_only, which would be lost"),
        (lambda config, tensors: tensors[min(tensors)].fill_(float("nan")), "are not finite"),
        (
            lambda config, tensors: config.update(init_lora_weights="pissa_niter_4"),
            "pissa_niter_4, which changes its base",
        ),
        (lambda config, tensors: config.update(alora_invocation_tokens=[7]), "has alora_invocation_tokens: .7., which"),
        (lambda config, tensors: config.update(layer_replication=[[0, 2], [1, 2]]), "has layer_replication: "),
        (lambda config, tensors: config.update(something_new=3), "has something_new: 3, which would be lost"),
        (lambda config, tensors: config.update(r="four"), "can't be loaded as an adapter: "),
        (lambda config, tensors: config.update(target_modules="("), "can't be loaded as an adapter: "),
    ],
    ids=[
        "another base",
        "missing",
        "left over",
        "another rank",
        "other modules",
        "not LoRA",
        "a whole module",
        "bias",
        "NaN",
        "changes its base",
        "acts at some tokens",
        "layers twice",
        "unknown",
        "no number",
        "no expression",
    ],
)
def test_one_that_does_not_fit_is_refused(kitchen, base, copy, change, said):
    with pytest.raises(ModelError, match=said):
        kitchen.make("adopt", base=base.handle, source=str(copy(change)))


@pytest.mark.parametrize(
    ("name", "content"),
    [("adapter_config.json", '{"r": 4, '), ("adapter_config.json", "[1]"), ("adapter_model.safetensors", "half")],
    ids=["configuration cut off", "a list", "tensors cut off"],
)
def test_a_damaged_one_is_what_a_user_gave(kitchen, base, copy, name, content):
    folder = copy(lambda config, tensors: None)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if content == "half" else content.encode())
    with pytest.raises(ModelError, match=r"source: "):
        kitchen.make("adopt", base=base.handle, source=str(folder))


def test_what_peft_drew_in_any_plain_way_is_carried_on_as_it_is(kitchen, base, pairs, tmp_path):
    """Ranks and scales of their own, layers and modules left out: another stage that starts from it starts there."""
    from peft import LoraConfig, get_peft_model

    from tasks.training.classifier import classifier

    torch.manual_seed(5)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
        exclude_modules=["k_proj"],
        layers_to_transform=[1], layers_pattern="layers", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 40},
    )  # fmt: skip
    theirs = get_peft_model(load_model(base.handle, "cpu"), config)
    theirs.save_pretrained(tmp_path / "theirs")
    adopted = kitchen.make("adopt", base=base.handle, source=str(tmp_path / "theirs"))
    ctx = Context(tmp_path, tmp_path, MetricsLog(tmp_path / "m"), Progress(events=False), 0, Execution(device="cpu"))
    scorer = classifier(base.handle, None, adopted.handle, ctx).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = theirs.eval()(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(scorer(ids, output_hidden_states=True).hidden_states[-1], wanted)
    made = kitchen.make("reward", base=base.handle, adapter=adopted.handle, data=pairs.handle, max_steps=2, eval_rows=0)
    shapes = [
        {name: tensor.shape for name, tensor in load_file(one.handle.path / "adapter_model.safetensors").items()}
        for one in (adopted, made)
    ]
    assert shapes[0] == shapes[1]


def test_what_is_no_adapter_is_refused_before_anything_runs(kitchen, base, sft, tmp_path):
    with pytest.raises(
        ModelError, match=r"has no adapter_config.json; wanted a folder that peft saved; for a complete"
    ):
        kitchen.stage("adopt", base=base.handle, source=str(base.handle.path))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="only a pickle, which runs code"):
        kitchen.stage("adopt", base=base.handle, source=str(tmp_path))
