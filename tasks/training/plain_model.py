"""What a model must not do behind a trainer's back: sample with habits of its own, or count padding as positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GIVEN = ("position_ids", "past_key_values", "inputs_embeds")


@contextmanager
def plain_sampling(model: Any, tokenizer: Any) -> Iterator[None]:
    """Meanwhile the model has no sampling habits of its own, and only EOS ends a completion.

    What a checkpoint's `generation_config` says (a repetition penalty, say) fills in whatever a caller leaves open.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "peft_config") else model
    own = owner.generation_config
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    owner.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        owner.generation_config = own


def positions_from_mask(trunk: Any) -> None:
    """Count positions from each row's first real token: TRL pads prompts on the left and says nothing of positions.

    Without it a model with absolute positions would be trained on other ones than it sampled with.
    """
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return

    def fill(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2 or any(kwargs.get(name) is not None for name in GIVEN):
            return None
        return args, {**kwargs, "position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0)}

    trunk.register_forward_pre_hook(fill, with_kwargs=True)
