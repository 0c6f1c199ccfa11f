"""An adapter in peft's files, read into its base with nothing missing and nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint
from tasks.training.models import ADAPTER_FILE, load_checkpoint

LOST = {"trainable_token_indices": None, "bias": "none", "lora_bias": False}
"""Settings under which peft trains more than matrices and whole modules, and their values when it does not."""
SHOWN = 3


def fitted(base: Checkpoint, folder: Path, config: Mapping[str, Any]) -> Any:
    """`base` with the adapter in `folder` as `default`; raises ModelError if it is no LoRA or does not fit."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    if config.get("peft_type") != "LORA":
        raise ModelError(f"source: wanted a LoRA adapter, got {config.get('peft_type')}")
    for name, nothing in LOST.items():
        if config.get(name, nothing) not in (nothing, []):
            raise ModelError(
                f"source: the adapter trained more than matrices and whole modules ({name}: {config[name]}), which "
                "would be lost; merge it into its base and take the result as a `base`"
            )
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = False
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
