"""A model's forward pass with the weights of one module in memory at a time.

So a merge can be verified on a machine that holds the model in 4 bits, but not as it was.
"""

from __future__ import annotations

from typing import Any

from artifacts.kinds import Checkpoint
from tasks.training.logps import trunk_of
from tasks.training.weight_files import Weights, skeleton


def streamed(checkpoint: Checkpoint, weights: Weights, device: str) -> tuple[Any, Any]:
    """The checkpoint's trunk and its head, whose modules fetch their weights when they run and drop them afterwards."""
    model = skeleton(checkpoint)
    names = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
        if own := [name for name, parameter in module._parameters.items() if parameter is not None]:
            _stream(module, {name: f"{names[id(module)]}.{name}" for name in own}, weights, device)
    head = model.get_output_embeddings()
    if f"{names[id(head)]}.weight" not in weights:  # tied: the files have it once, as the embedding
        _stream(head, {"weight": f"{names[id(model.get_input_embeddings())]}.weight"}, weights, device)
    return trunk_of(model), head


def _stream(module: Any, names: dict[str, str], weights: Weights, device: str) -> None:
    """`names` are those of the module's own parameters, and theirs in `weights`."""
    from torch import nn

    empty = {own: module._parameters[own] for own in names}

    def fetch(module: Any, args: Any) -> None:
        for own, name in names.items():
            module._parameters[own] = nn.Parameter(weights[name].to(device), requires_grad=False)

    def drop(module: Any, args: Any, output: Any) -> None:
        module._parameters.update(empty)

    module._forward_pre_hooks.clear()
    module._forward_hooks.clear()
    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(drop)
