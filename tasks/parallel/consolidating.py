"""Weights of which every process holds a part, made whole again at the end, so that files are as one process has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.parallel.processes import Processes

if TYPE_CHECKING:
    from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself where it is whole."""
    part = getattr(tensor, "to_local", None)
    found: Tensor = tensor if part is None else part()
    return found


def make_whole(model: Any, processes: Processes) -> None:
    """Put whole tensors in the place of sharded ones, in the first process; the model is good for saving alone then.

    One tensor after another, so that no other process ever holds more of the model than its part and one of these.
    """
    if not processes.sharded:
        return
    from torch import nn

    for module in model.modules():
        if hasattr(module, "reshard"):  # else what was gathered for the last pass would be there beside its parts
            module.reshard()
    whole: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not hasattr(parameter, "full_tensor"):
                continue
            if id(parameter) not in whole:
                tensor = parameter.full_tensor()
                if processes.first:
                    whole[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            if processes.first:
                module._parameters[name] = whole[id(parameter)]
