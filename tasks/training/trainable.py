"""From a starting model to one that trains, and from a trained one to the files that a stage leaves."""

from __future__ import annotations

from typing import Any

from artifacts.errors import StageError
from artifacts.kinds import Adapter, Checkpoint, Model, base_of
from tasks.context import Context
from tasks.lora import LoRA
from tasks.training.model_files import copy_companions, save_weights
from tasks.training.models import (
    add_adapter,
    load_model,
    load_tokenizer,
    parameter_counts,
    save_adapter,
    without_dropout,
)
from tasks.training.quantized import keep_float32
from tasks.training.rounding import rounding_problem
from tasks.training.weight_files import WeightFiles


def trainable(start: Model, lora: LoRA | None, ctx: Context) -> tuple[Any, Any]:
    """A causal language model ready to train, and its tokenizer.

    An adapter goes on training as `default`, without dropout; a checkpoint gets a fresh adapter, or, without `lora`,
    trains whole and in float32, since small updates vanish in bfloat16 weights.
    """
    import torch

    torch.manual_seed(ctx.seed)
    tokenizer = load_tokenizer(base_of(start))
    if isinstance(start, Adapter):
        model = without_dropout(load_model(start, ctx.device(), trainable=True))
    elif lora is not None:
        model = add_adapter(load_model(start, ctx.device()), lora, task="CAUSAL_LM")
    else:
        model = load_model(start, ctx.device(), float32=True).train()
    keep_float32(model)
    say_size(model, ctx)
    return model, tokenizer


def say_size(model: Any, ctx: Context) -> None:
    """One line with what is trained of how much."""
    total, trained = parameter_counts(model)
    ctx.say(f"trains {trained:,} of {total:,} parameters ({trained / total:.2%})")


def save_trained(model: Any, start: Model, ctx: Context, name: str = "default") -> None:
    """The adapter alone, or a complete checkpoint in the dtype of the one it started from."""
    if hasattr(model, "peft_config"):
        save_adapter(model, ctx.out, base_of(start), name)
        return
    save_whole(model, base_of(start), ctx)


def save_whole(model: Any, start: Checkpoint, ctx: Context) -> None:
    """Complete weights with the tokenizer and chat template of `start`; raises StageError if its dtype undoes them."""
    config = load_config(start)
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    if dtype != "float32" and (problem := rounding_problem(model.state_dict(), WeightFiles(start.path), ctx)):
        raise StageError(problem)
    model.config.use_cache = config.use_cache  # which training turns off
    save_weights(model, ctx.out, dtype)
    copy_companions(start.path, ctx.out)


def load_config(checkpoint: Checkpoint) -> Any:
    """A checkpoint's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint.path)
