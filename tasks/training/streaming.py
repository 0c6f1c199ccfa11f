"""A model's forward pass with the weights of one module in memory at a time.

So a merge can be made and verified on a machine that could not hold the model.
"""

from __future__ import annotations

from typing import Any

from artifacts.kinds import Adapter, Checkpoint
from tasks.training.logps import trunk_of
from tasks.training.models import ADAPTER_FILE
from tasks.training.weight_files import Weights, embedding_and_head, skeleton


def streamed(checkpoint: Checkpoint, weights: Weights, device: str, adapter: Adapter | None = None) -> tuple[Any, Any]:
    """The checkpoint's trunk and its head, whose modules fetch their weights when they run and drop them afterwards.

    With `adapter`, which is in memory whole, as it was trained: beside the weights, not merged into them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = skeleton(checkpoint)
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = (f"{name}.weight" for name in embedding_and_head(model))
    places = {} if head in weights else {head: embedding}  # tied: the files have it once
    if adapter is not None:
        model = _with_adapter(model, adapter, device)
    inside = {id(module.get_base_layer()) for module in model.modules() if isinstance(module, BaseTunerLayer)}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
        owner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if id(module) not in inside and id(owner) in names:
            own = [name for name, parameter in owner._parameters.items() if parameter is not None]
            found = {name: f"{names[id(owner)]}.{name}" for name in own}
            _stream(module, owner, {name: places.get(there, there) for name, there in found.items()}, weights, device)
    return trunk_of(model), model.get_output_embeddings()


def _with_adapter(model: Any, adapter: Adapter, device: str) -> Any:
    """A model without weights, and an adapter with its own. (peft puts an adapter where the model is: nowhere.)"""
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from torch import nn

    base = {id(module) for module in model.modules()}
    config = PeftConfig.from_pretrained(str(adapter.path))
    config.base_model_name_or_path = None
    model = get_peft_model(model, config)
    real: dict[nn.Parameter, nn.Parameter] = {}
    for module in (module for module in model.modules() if id(module) not in base):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in real:
                real[parameter] = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)
            if parameter is not None:
                module._parameters[name] = real[parameter]
    set_peft_model_state_dict(model, load_file(adapter.path / ADAPTER_FILE))
    return model.eval()


def _stream(module: Any, owner: Any, names: dict[str, str], weights: Weights, device: str) -> None:
    """While `module` runs, `owner` has its parameters; `names` are theirs in `owner` and in `weights`."""
    from torch import nn

    empty = {own: owner._parameters[own] for own in names}

    def fetch(module: Any, args: Any) -> None:
        for own, name in names.items():
            owner._parameters[own] = nn.Parameter(weights[name].to(device), requires_grad=False)

    def drop(module: Any, args: Any, output: Any) -> None:
        owner._parameters.update(empty)

    if names:
        module.register_forward_pre_hook(fetch)
        module.register_forward_hook(drop)
