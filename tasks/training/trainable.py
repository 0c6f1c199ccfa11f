"""From a starting model to one that trains, and from a trained one to the files that a stage leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def save_trained(model: Any, start: Model, out: Path, name: str = "default") -> None:
    """The adapter alone, or a complete checkpoint in the dtype of the one it started from."""
    if hasattr(model, "peft_config"):
        save_adapter(model, out, base_of(start), name)
        return
    save_whole(model, base_of(start), out)


def save_whole(model: Any, start: Checkpoint, out: Path) -> None:
    """Complete weights with the tokenizer and chat template of `start`."""
    config = load_config(start)
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    model.config.use_cache = config.use_cache  # which training turns off
    save_weights(model, out, dtype)
    copy_companions(start.path, out)


def load_config(checkpoint: Checkpoint) -> Any:
    """A checkpoint's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint.path)
