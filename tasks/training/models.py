"""Loading models and adapters, and writing adapters so that equal weights are equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from artifacts.errors import ModelError
from artifacts.kinds import Adapter, Checkpoint, Model, Quantized, base_of
from tasks.settings import LoRA
from tasks.shape import adapted
from tasks.training.quantized import elements, load_quantized

ADAPTER_FILE = "adapter_model.safetensors"


def load_tokenizer(base: Checkpoint) -> Any:
    """The tokenizer that the checkpoint was saved with; padding goes to the right unless told otherwise."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.path)


def base_tokenizer(model: Model) -> Any:
    """The tokenizer that a policy speaks: its base's."""
    return load_tokenizer(base_of(model))


def load_checkpoint(checkpoint: Checkpoint, device: str, *, float32: bool = False) -> Any:
    """Complete weights as a causal language model, in evaluation mode, in the dtype they were saved in."""
    from transformers import AutoModelForCausalLM

    model: Any = load_as(AutoModelForCausalLM, checkpoint, device, float32=float32)
    require_plain_logits(model.config)
    return without_dropout(model).eval()


def load_as(model_class: Any, checkpoint: Checkpoint, device: str, *, float32: bool = False, **more: Any) -> Any:
    """A checkpoint's weights in one of transformers' classes; what is in 4 bits stays so."""
    import torch

    if isinstance(checkpoint, Quantized):
        return load_quantized(checkpoint, device, model_class, **more)
    dtype: Any = torch.float32 if float32 else "auto"
    return model_class.from_pretrained(checkpoint.path, dtype=dtype, **more).to(device)


def require_plain_logits(config: Any) -> None:
    """Raise ModelError for a model that scales or caps its logits: log-probabilities here come from the head alone."""
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if (value := getattr(config, name, None)) not in (None, 1):
            raise ModelError(f"the base changes its logits after the head ({name} {value}), which is not supported yet")


def without_dropout(model: Any) -> Any:
    """The model with its own dropout off for good: the only dropout is the one that a recipe gives an adapter."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def load_model(model: Model, device: str, *, trainable: bool = False, float32: bool = False) -> Any:
    """A policy: its checkpoint, with its adapter, if it is one, under the name `default`."""
    loaded = load_checkpoint(base_of(model), device, float32=float32)
    if isinstance(model, Adapter):
        from peft import PeftModel

        check_base(model)
        loaded = PeftModel.from_pretrained(loaded, model.path, adapter_name="default", is_trainable=trainable)
        if not trainable:
            loaded.eval()
    return loaded


def check_base(adapter: Adapter) -> None:
    """Raise ModelError unless the adapter was trained on exactly this base."""
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    if (trained_on := config["base_model_name_or_path"]) != (here := adapter.base.digest()):
        raise ModelError(
            f"adapter {adapter.key[:12]} was trained on the base {trained_on[:12]}, but got {here[:12]}; "
            "take the base that it was trained on"
        )


def add_adapter(
    model: Any, lora: LoRA, *, task: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM", name: str = "default"
) -> Any:
    """`model` with a fresh trainable adapter; B starts at zero, so nothing changes yet."""
    from peft import LoraConfig, get_peft_model

    alpha: Any = lora.alpha
    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=target_names(model, lora),
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        fan_in_fan_out=_has_conv1d(model),
    )
    return get_peft_model(model, config, adapter_name=name)


def target_names(model: Any, lora: LoRA) -> list[str]:
    """Full names of the linear modules (GPT-2's Conv1D too) that get an adapter; never the output head.

    Raises ModelError if the pattern matches none, or one that is narrower than the rank.
    """
    layers = int(model.config.num_hidden_layers)
    first = layers - min(lora.top_layers or layers, layers)
    linears = {
        name: _width(module)
        for name, module in model.named_modules()
        if _is_linear(module) and layer_number(name) is not None
    }
    found = [name for name in linears if adapted(name, lora.target_modules) and (layer_number(name) or 0) >= first]
    if not found:
        short = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise ModelError(
            f"lora.target_modules: {lora.target_modules!r} matches no linear module; this base has {', '.join(short)}"
        )
    narrowest = min(found, key=lambda name: linears[name])
    if lora.rank > linears[narrowest]:
        raise ModelError(
            f"lora.rank: wanted at most {linears[narrowest]}, the width of {narrowest}, got {lora.rank}: more columns "
            "than that say nothing new; lower it, or leave that module out with lora.target_modules"
        )
    return found


def _is_linear(module: Any) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _width(module: Any) -> int:
    """The smaller of a linear module's two sides, beyond which no matrix product gains rank."""
    if hasattr(module, "in_features"):
        return int(min(module.in_features, module.out_features))
    return int(min(module.weight.shape))


def _has_conv1d(model: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def layer_number(name: str) -> int | None:
    """The layer's number in a module name such as `model.layers.7.mlp.up_proj`; None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def save_adapter(model: Any, out: Path, base: Checkpoint, name: str = "default") -> None:
    """One adapter alone: tensors, and a configuration with sorted lists and the base's digest.

    peft writes sets in hash order and the base's path, so two equal adapters would differ in bytes.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(model, adapter_name=name)
    trunk = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if "lora_" in name}
    save_file(dict(sorted(trunk.items())), out / ADAPTER_FILE, metadata={"format": "pt"})
    config = {name: _plain(value) for name, value in model.peft_config[name].to_dict().items()}
    config.update(
        base_model_name_or_path=base.digest(),
        inference_mode=True,
        task_type="CAUSAL_LM",
        modules_to_save=None,
    )
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return getattr(value, "value", value)


def start_from(model: Any, adapter: Adapter) -> None:
    """Copy an adapter's tensors into the adapter `default` of `model`, which must have the same shape."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    check_base(adapter)
    tensors = get_peft_model_state_dict(model, adapter_name="default")
    given = load_file(adapter.path / ADAPTER_FILE)
    if strangers := given.keys() - tensors.keys():
        raise ModelError(f"adapter {adapter.key[:12]} does not fit: {min(strangers)} has no place")
    set_peft_model_state_dict(model, {**tensors, **given}, adapter_name="default")


def adapter_lora(adapter: Adapter) -> LoRA:
    """The settings that an adapter was made with, its modules by full name."""
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    return LoRA(
        rank=config["r"], alpha=config["lora_alpha"], dropout=config["lora_dropout"],
        target_modules=config["target_modules"], rslora=config["use_rslora"], dora=config["use_dora"],
    )  # fmt: skip


def parameter_counts(model: Any) -> tuple[int, int]:
    """(all, trainable) parameters."""
    counted = [(elements(p), p.requires_grad) for p in model.parameters()]
    return sum(count for count, _ in counted), sum(count for count, trains in counted if trains)
