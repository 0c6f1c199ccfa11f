"""Weights of which every process holds a part, made whole again at the end: files are as one process leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifacts.errors import StageError
from tasks.parallel.processes import Processes

if TYPE_CHECKING:
    from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself where it is whole."""
    part = getattr(tensor, "to_local", None)
    found: Tensor = tensor if part is None else part()
    return found


def gradients(model: Any, optimizer: Any) -> list[Tensor]:
    """This process's part of every gradient there is.

    DeepSpeed has stepped by then, and keeps no more of them than their norm over all processes: that, as a scalar.
    """
    import torch

    norm = getattr(getattr(optimizer, "optimizer", None), "_global_grad_norm", None)
    if norm is not None:
        return [torch.as_tensor(norm)]
    return [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


def shard_on_cpu(state: Any) -> None:
    """Let accelerate's `state` divide weights among processes without a GPU, which it would pass over in silence.

    FSDP itself works there, over gloo. The settings are those that `accelerate launch` has put into the environment.
    """
    from accelerate import DistributedType
    from accelerate.utils import FullyShardedDataParallelPlugin

    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.distributed_type = DistributedType.FSDP


def require_sharded(model: Any) -> None:
    """Raise StageError if every process had all of the model after all: the mode that was asked for was not used."""
    if not any(map(_is_part, model.parameters())):
        raise StageError("the weights were not divided among the processes; take launch.mode ddp")


def make_whole(model: Any, processes: Processes) -> None:
    """Put whole tensors in the place of sharded ones, in the first process; the model is good for saving alone then.

    One tensor after another, so that no other process ever holds more of the model than its part and one of these.
    """
    if not processes.sharding:
        return
    from torch import nn
    from torch.distributed.fsdp import FSDPModule
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    require_sharded(model)

    for module in model.modules():
        if hasattr(module, "reshard"):  # else what was gathered for the last pass would be there beside its parts
            module.reshard()
    whole: dict[nn.Parameter, nn.Parameter | None] = {}  # tied weights stand in two places
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not _is_part(parameter):
                continue
            if parameter not in whole:
                tensor = _gathered(parameter)  # all take part in it
                whole[parameter] = nn.Parameter(tensor, parameter.requires_grad) if processes.first else None
            if processes.first:
                module._parameters[name] = whole[parameter]
    for module in model.modules():
        if processes.first and isinstance(module, FSDPModule):  # FSDP's class is one made before the module's own
            module.__class__ = type(module).__bases__[1]
    unset_hf_deepspeed_config()  # else a model that is loaded from here on would be divided as it is loaded


def _is_part(parameter: Any) -> bool:
    """Whether FSDP or DeepSpeed has divided it."""
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id")


def _gathered(parameter: Any) -> Tensor:
    """All of a divided parameter."""
    if hasattr(parameter, "full_tensor"):
        whole: Tensor = parameter.full_tensor()
        return whole
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        copy: Tensor = parameter.data.clone()
        return copy
