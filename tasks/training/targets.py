"""Which modules of a model get an adapter, and which train whole beside it."""

from __future__ import annotations

from typing import Any

from artifacts.errors import ModelError
from tasks.lora import VANISH, LoRA
from tasks.shape import layer_number, named
from tasks.training.weight_files import embedding_and_head


def target_names(model: Any, lora: LoRA) -> list[str]:
    """Full names of the linear modules (GPT-2's Conv1D too) that get an adapter; never the output head.

    Raises ModelError if there are none, or one that is narrower than the rank.
    """
    widths = {name: _width(module) for name, module in model.named_modules() if _is_linear(module)}
    return lora.targets(widths, int(model.config.num_hidden_layers))


def _is_linear(module: Any) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _width(module: Any) -> int:
    """The smaller of a linear module's two sides, beyond which no matrix product gains rank."""
    if hasattr(module, "in_features"):
        return int(min(module.in_features, module.out_features))
    return int(min(module.weight.shape))


def has_conv1d(model: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def whole_names(model: Any, lora: LoRA) -> list[str]:
    """Full names of the modules in `lora.modules_to_save`; embeddings that are the head go by its name.

    Raises ModelError for one that there is not, that is in half precision, or that an adapter is in.
    """
    import torch

    if not lora.modules_to_save:
        return []
    modules = {name: module for name, module in model.named_modules() if any(True for _ in module.parameters())}
    own = [name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    found: list[str] = []
    for wanted in lora.modules_to_save:
        matching = [name for name in modules if named(name, wanted)]
        if not matching:
            plain = sorted({name.rsplit(".", 1)[-1] for name in own if layer_number(name) is None})
            raise ModelError(
                f"lora.modules_to_save: no module is named {wanted!r}; outside its layers this base has "
                f"{', '.join(plain)}"
            )
        found += matching
    for name in found:
        if inner := next((other for other in found if other.startswith(f"{name}.")), None):
            raise ModelError(
                f"lora.modules_to_save: {inner} is in {name}, which trains whole as it is; name one of them"
            )
        if inner := next((target for target in target_names(model, lora) if f"{target}.".startswith(f"{name}.")), None):
            raise ModelError(
                f"lora.modules_to_save: {name} can't train whole, since {inner} gets an adapter; leave it out of "
                "lora.target_modules"
            )
        if other := next((p.dtype for p in modules[name].parameters() if p.dtype != torch.float32), None):
            got = "half precision" if other.itemsize == 2 else "4 bits"
            raise ModelError(f"lora.modules_to_save: wanted {name} in float32, got {got}{VANISH}")
    one = tied_names(model)
    return sorted({one[1] if one and name in one else name for name in found})


def tied_names(model: Any) -> tuple[str, str] | None:
    """Names of the embeddings and the head, where these are one matrix."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return None if head is None or head.weight is not embedding.weight else embedding_and_head(model)
