"""Loading models and adapters, and writing adapters so that equal weights are equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from artifacts.errors import ModelError
from artifacts.kinds import Adapter, Checkpoint, Model, Quantized, base_of
from tasks.lora import LoRA, whole_modules_problem
from tasks.training.quantized import elements, load_quantized
from tasks.training.targets import has_conv1d, target_names, tied_names, whole_names

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the name of every module."""
HEAD = f"{PREFIX}score."
"""How the names of a reward model's head begin, which is kept in a file of its own."""


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
    whole, tied = whole_names(model, lora), tied_names(model)
    one = tied if tied and tied[1] in whole else None
    biased = one is not None and model.get_output_embeddings().bias is not None  # which peft would leave out
    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=target_names(model, lora),
        modules_to_save=[*whole, *(["score"] if task == "SEQ_CLS" else [])] or None,
        ensure_weight_tying=one is not None,
        fan_in_fan_out=has_conv1d(model),
    )
    model = get_peft_model(model, config, adapter_name=name)
    if one and (biased or tied_names(model.get_base_model()) is None):
        raise ModelError(f"lora.modules_to_save: {one[0]} and {one[1]} are one matrix, which peft can't keep so here")
    return model


def save_adapter(model: Any, out: Path, base: Checkpoint, name: str = "default") -> None:
    """One adapter alone: tensors, and a configuration with sorted lists and the base's digest.

    peft writes sets in hash order and the base's path, so two equal adapters would differ in bytes.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    kept = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items() if HEAD not in name}
    save_file(dict(sorted(kept.items())), out / ADAPTER_FILE, metadata={"format": "pt"})
    config = {name: _plain(value) for name, value in model.peft_config[name].to_dict().items()}
    whole = {tensor.removeprefix(PREFIX).rpartition(".")[0] for tensor in kept if ".lora_" not in tensor}
    if one := tied_names(model.get_base_model()):
        whole.discard(one[0])  # peft finds the embeddings by the head, and not always the other way
    config.update(
        base_model_name_or_path=base.digest(),
        inference_mode=True,
        task_type="CAUSAL_LM",
        modules_to_save=sorted(whole) or None,
    )
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return getattr(value, "value", value)


def require_matrices_only(model: Model) -> None:
    """Raise ModelError for an adapter beside which modules were trained whole."""
    if problem := whole_modules_problem(model):
        raise ModelError(problem)


def start_from(model: Any, adapter: Adapter) -> None:
    """Copy an adapter's tensors into the adapter `default` of `model`, which must have the same shape."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    check_base(adapter)
    require_matrices_only(adapter)
    tensors = get_peft_model_state_dict(model, adapter_name="default")
    given = load_file(adapter.path / ADAPTER_FILE)
    if strangers := given.keys() - tensors.keys():
        raise ModelError(f"adapter {adapter.key[:12]} does not fit: {min(strangers)} has no place")
    set_peft_model_state_dict(model, {**tensors, **given}, adapter_name="default")


def add_copy(model: Any, adapter: Adapter) -> Any:
    """A classifier with an adapter of the same shape and scaling, and its tensors, as `default`."""
    from peft import LoraConfig, TaskType, get_peft_model

    config: Any = LoraConfig.from_pretrained(str(adapter.path))
    config.task_type, config.inference_mode = TaskType.SEQ_CLS, False
    model = get_peft_model(model, config)
    start_from(model, adapter)
    return model


def parameter_counts(model: Any) -> tuple[int, int]:
    """(all, trainable) parameters."""
    counted = [(elements(p), p.requires_grad) for p in model.parameters()]
    return sum(count for count, _ in counted), sum(count for count, trains in counted if trains)
