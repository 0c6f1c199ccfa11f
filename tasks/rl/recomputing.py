"""Checkpointing of a model whose dropout is off: layers compute again in the backward pass what they did not keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tasks.training.logps import trunk_of


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Meanwhile `model`, in evaluation mode, keeps only what goes from layer to layer.

    transformers checkpoints layers that train; here only the layers themselves say so, and no dropout inside them.
    (Its own way to ask for it would also have the embeddings' output want a gradient.)
    """
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in trunk_of(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    again = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    for layer in layers:
        layer.training, layer.gradient_checkpointing = True, True
        layer._gradient_checkpointing_func = again  # type: ignore[assignment]  # torch types all attributes as modules
    try:
        yield
    finally:
        for layer in layers:
            layer.training, layer.gradient_checkpointing = False, False
