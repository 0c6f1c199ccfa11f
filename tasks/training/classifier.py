"""A base with a scalar head, as TRL's RewardTrainer wants it, and what the reward stage keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifacts.kinds import Adapter, Checkpoint, RewardModel
from tasks.context import Context
from tasks.lora import LoRA
from tasks.training.logps import padded
from tasks.training.models import (
    add_adapter,
    add_copy,
    load_as,
    load_tokenizer,
    require_matrices_only,
    save_adapter,
    without_dropout,
)
from tasks.training.quantized import keep_float32
from tasks.training.rows import batches
from tasks.training.scoring import load_reward, save_head, score
from tasks.training.trainable import save_whole, say_size

if TYPE_CHECKING:
    from torch import nn

SCORING_BATCH = 16


def classifier(base: Checkpoint, lora: LoRA | None, adapter: Adapter | None, ctx: Context) -> Any:
    """The base's trunk with a head of its own, in float32 and drawn from the stage's seed."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(ctx.seed)
    whole = lora is None and adapter is None
    model = load_as(AutoModelForSequenceClassification, base, ctx.device(), float32=whole, num_labels=1)
    model = without_dropout(model)
    model.score = _head(model.config.hidden_size).to(ctx.device())
    if adapter is not None:
        require_matrices_only(adapter)
        model = without_dropout(add_copy(model, adapter))
    elif lora is not None:
        model = add_adapter(model, lora, task="SEQ_CLS")
    keep_float32(model)
    say_size(model, ctx)
    return model


def _head(hidden: int) -> nn.Linear:
    """A float32 head over states of any dtype; starts near 0 so that every score does."""
    import torch
    from torch import nn

    class Head(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states.float())

    head = Head(hidden, 1, bias=False)
    nn.init.normal_(head.weight, std=1 / (hidden + 1))
    return head


def save_reward(
    model: Any, base: Checkpoint, held_out: list[dict[str, Any]], ctx: Context
) -> list[tuple[float, float]]:
    """Write trunk (or adapter) and head, centred; gives the held-out (chosen, rejected) scores of what was written."""
    import torch

    if hasattr(model, "peft_config"):
        save_adapter(model, ctx.out, base)
        weight = model.base_model.model.score.modules_to_save["default"].weight
    else:
        save_whole(_as_causal(model, base), base, ctx)
        weight = model.score.weight
    weight = weight.detach().clone()
    save_head(weight, 0.0, ctx.out)
    reward = RewardModel(key="", path=ctx.out, base=base)
    with torch.no_grad():
        chosen, rejected = (score_rows(reward, held_out, f"{side}_ids", ctx) for side in ("chosen", "rejected"))
    offset = sum(chosen) / len(chosen)
    save_head(weight, offset, ctx.out)
    return [(a - offset, b - offset) for a, b in zip(chosen, rejected, strict=True)]


def _as_causal(model: Any, base: Checkpoint) -> Any:
    """The trained trunk under a causal language model's head, which scoring never uses."""
    from tasks.training.models import load_checkpoint

    causal = load_checkpoint(base, "cpu", float32=True)
    causal.base_model.load_state_dict(model.base_model.state_dict())
    return causal


def score_rows(reward: RewardModel, rows: list[dict[str, Any]], name: str, ctx: Context) -> list[float]:
    """The score of each row's completion `name`, in the rows' order."""
    import torch

    pad = load_tokenizer(reward.base).pad_token_id
    model, head = load_reward(reward, ctx.device())
    scores = [0.0] * len(rows)
    lengths = [len(row["prompt_ids"]) + len(row[name]) for row in rows]
    done = 0
    with torch.no_grad():
        for batch in batches(rows, lengths, SCORING_BATCH):
            prompts, completions = [row["prompt_ids"] for _, row in batch], [row[name] for _, row in batch]
            found = score(model, head, padded(prompts, completions, pad, ctx.device()))
            for (position, _), value in zip(batch, found.tolist(), strict=True):
                scores[position] = value
            done += len(batch)
            ctx.progress(done, len(rows), "scored")
    return scores
