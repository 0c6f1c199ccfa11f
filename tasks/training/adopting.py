"""An adapter in peft's files, read into its base with nothing missing and nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint
from tasks.training.models import ADAPTER_FILE, load_checkpoint

CARRIED = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "ensure_weight_tying",
    "fan_in_fan_out", "init_lora_weights", "peft_type", "task_type", "base_model_name_or_path", "revision",
    "inference_mode", "auto_mapping", "peft_version", "megatron_config", "megatron_core",
})  # fmt: skip
"""Settings of peft's that mean the same in every stage, or nothing; any other must be at its default."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to draw A and B; all others change the base too, again whenever peft makes such an adapter."""
SHOWN = 3


def fitted(base: Checkpoint, folder: Path, config: Mapping[str, Any]) -> Any:
    """`base` with the adapter in `folder` as `default`; raises ModelError if it is no LoRA or does not fit."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    _require_plain(config)
    try:
        settings: Any = PeftConfig.from_pretrained(str(folder))
        settings.inference_mode, settings.init_lora_weights, settings.eva_config = False, True, None
        model = get_peft_model(load_checkpoint(base, "cpu"), settings)  # type: ignore[arg-type]  # our models are of any class
    except ValueError as error:  # peft's, for modules that the base does not have
        raise ModelError(f"source: the adapter does not fit the base: {str(error).splitlines()[0][:300]}") from error
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    _require_float32(tensors)
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    given = load_file(folder / ADAPTER_FILE)
    _compare(wanted, {name: tuple(tensor.shape) for name, tensor in given.items()})
    if bad := next((name for name, tensor in given.items() if not tensor.isfinite().all()), None):
        raise ModelError(f"source: {bad} holds numbers that are not finite")
    set_peft_model_state_dict(model, given)
    return model


def _require_plain(config: Mapping[str, Any]) -> None:
    """Raise ModelError unless it is a LoRA adapter with nothing that a stage would lose or do twice."""
    from peft import LoraConfig

    if not isinstance(config, Mapping) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, Mapping) else type(config).__name__
        raise ModelError(f"source: wanted a LoRA adapter, got {kind}")
    start, defaults = config.get("init_lora_weights", True), LoraConfig().to_dict()
    if start not in PLAIN_STARTS:
        raise ModelError(
            f"source: the adapter was made with init_lora_weights: {start}, which changes its base; have peft convert "
            "it to a plain one (path_initial_model_for_weight_conversion), or merge it and take the result as a `base`"
        )
    for name in sorted(config.keys() - CARRIED - ({"eva_config"} if start == "eva" else set())):
        if config[name] != defaults.get(name) and config[name] not in (None, False, [], {}):
            raise ModelError(
                f"source: the adapter has {name}: {str(config[name])[:80]}, which would be lost here; merge it into "
                "its base and take the result as a `base`"
            )


def _require_float32(tensors: Mapping[str, Any]) -> None:
    """Raise ModelError for modules that would train whole in half precision."""
    import torch

    if coarse := next((name for name, tensor in tensors.items() if tensor.dtype != torch.float32), None):
        raise ModelError(f"source: {coarse} trains whole, and the base has it in half precision, where small updates "
                         "vanish; take the base with `dtype: float32`")  # fmt: skip


def _compare(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    missing, strange = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    unlike = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    problems = [f"{len(missing)} tensors are missing, such as {missing[0]}"] if missing else []
    problems += [f"{len(strange)} have no place, such as {strange[0]}"] if strange else []
    problems += [f"{name} has the shape {given[name]}, not {wanted[name]}" for name in unlike[:SHOWN]]
    if problems:
        raise ModelError(f"source: the adapter does not fit the base: {'; '.join(problems)}")
