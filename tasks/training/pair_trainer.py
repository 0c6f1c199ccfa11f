"""Pairs through a loss of ours: one pass over both completions, and the stage's loss of their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from tasks.context import Context
from tasks.training.logps import padded, token_logps, trunk_of
from tasks.training.models import without_dropout
from tasks.training.own_loss import Batch, OwnLoss
from tasks.training.rows import load_rows, pair_length
from tasks.training.shared_prompt import share_prompts
from tasks.training.trainable import save_trained, trainable
from tasks.training.trainer import arguments, fit, ids_only

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.tuning import Paired

    PairLoss = Callable[[Tensor, Tensor], Tensor]
    """The loss of each pair, (B,), from the mean log-probabilities a token of chosen and rejected, (B,) each."""


def train_pairs(stage: Paired, ctx: Context, loss: PairLoss) -> dict[str, float]:
    """Train a stage's policy with its loss, and report rewards, `beta` times the mean log-probability a token."""
    from datasets import Dataset as Rows

    rows, tests = load_rows(stage.data, "train"), load_rows(stage.data, "test")[: stage.eval_rows]
    lengths = [pair_length(row) for row in rows]
    model, tokenizer = trainable(stage.policy, stage.lora, ctx)
    without_dropout(model)
    share_prompts(trunk_of(model))
    trainer = ids_only(PairTrainer, lengths, stage, ctx)(
        model=model,
        args=arguments(TrainingArguments, stage, ctx, len(rows), len(tests), remove_unused_columns=False),
        data_collator=lambda batch: side_by_side(batch, tokenizer.pad_token_id),
        train_dataset=Rows.from_list(rows),
        eval_dataset=Rows.from_list(tests) if tests else None,
        processing_class=tokenizer,
    )
    trainer.pair_loss, trainer.beta = loss, stage.beta
    metrics = fit(trainer, stage, ctx, lengths)
    save_trained(model, stage.policy, ctx)
    return metrics


def side_by_side(rows: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """The chosen completions after their prompts, then the rejected ones: (2B, T) each."""
    prompts = [row["prompt_ids"] for row in rows]
    return padded(2 * prompts, [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows], pad, "cpu")


class PairTrainer(OwnLoss):
    """Its `pair_loss` and `beta` are the stage's."""

    pair_loss: PairLoss
    beta: float

    def rows_in(self, batch: Batch) -> int:
        return len(batch["input_ids"]) // 2

    def losses(self, model: Any, batch: Batch) -> Tensor:
        logps, lengths = token_logps(model, batch).sum(dim=1), (batch["labels"][:, 1:] != -100).sum(dim=1)
        chosen, rejected = (logps / lengths).chunk(2)
        self.note({"logps/chosen": logps.chunk(2)[0], "logps/rejected": logps.chunk(2)[1]})
        self.note({
            "rewards/chosen": self.beta * chosen, "rewards/rejected": self.beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
        })  # fmt: skip
        return self.pair_loss(chosen, rejected)
