"""Labelled completions through a loss of ours: log-ratios to the reference, and the reference point z0 beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from tasks.context import Context
from tasks.training.likelihood import row_logps
from tasks.training.logps import padded, token_logps
from tasks.training.models import without_dropout
from tasks.training.own_loss import Batch, OwnLoss
from tasks.training.rows import seen
from tasks.training.trainable import save_trained, trainable
from tasks.training.trainer import arguments, fit, ids_only

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.tuning import Tuning

    FeedbackLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
    """The loss of each row, (B,), from log-ratios (B,), whether it is desirable (B,), and z0."""

Row = dict[str, Any]
REFERENCE_BATCH = 16


def train_feedback(
    stage: Tuning, rows: list[Row], tests: list[Row], ctx: Context, loss: FeedbackLoss, beta: float
) -> dict[str, float]:
    """Train a stage's policy on rows with `label`, and report rewards, `beta` times the log-ratio."""
    from datasets import Dataset as Rows

    model, tokenizer = trainable(stage.policy, stage.lora, ctx)
    without_dropout(model)
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    read = seen(lengths, stage.batch_size, ctx.seed, stage.steps(len(rows)))
    train = with_reference(model, tokenizer, with_others(rows, ctx.seed), read, ctx)
    held_out = with_reference(model, tokenizer, with_others(tests, ctx.seed), set(range(len(tests))), ctx)
    trainer = ids_only(FeedbackTrainer, lengths, stage, ctx)(
        model=model,
        args=arguments(TrainingArguments, stage, ctx, len(rows), len(tests), remove_unused_columns=False),
        data_collator=lambda batch: collated(batch, tokenizer.pad_token_id),
        train_dataset=Rows.from_list(train),
        eval_dataset=Rows.from_list(held_out) if tests else None,
        processing_class=tokenizer,
    )
    trainer.feedback_loss, trainer.beta = loss, beta
    metrics = fit(trainer, stage, ctx, lengths)
    save_trained(model, stage.policy, ctx)
    return metrics


def with_others(rows: list[Row], seed: int) -> list[Row]:
    """Each row with `other_ids`, the completion of another: the next in an order that the seed shuffles."""
    order = list(range(len(rows)))
    random.Random(f"{seed}/others").shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))
    return [{**row, "other_ids": rows[after[i]]["completion_ids"]} for i, row in enumerate(rows)]


def with_reference(model: Any, tokenizer: Any, rows: list[Row], read: set[int], ctx: Context) -> list[Row]:
    """Each row with the log-probabilities of both its completions under the model as it is now, the reference.

    0 for a row that is not in `read`: it is never trained on.
    """
    import torch

    wanted = [rows[i] for i in sorted(read)]
    model.eval()
    with torch.no_grad():
        own, other = (
            row_logps(model, tokenizer, wanted, name, REFERENCE_BATCH, ctx) for name in ("completion_ids", "other_ids")
        )
    found = dict(zip(sorted(read), zip(own, other, strict=True), strict=True))
    return [
        {**row, "ref_logp": found.get(i, (0.0, 0.0))[0], "ref_other_logp": found.get(i, (0.0, 0.0))[1]}
        for i, row in enumerate(rows)
    ]


def collated(rows: list[Row], pad: int) -> Batch:
    """Completions in `input_ids`, `attention_mask` and `labels`, (B, T); under `other` the same of the others."""
    import torch

    prompts = [row["prompt_ids"] for row in rows]
    return {
        **padded(prompts, [row["completion_ids"] for row in rows], pad, "cpu"),
        "other": padded(prompts, [row["other_ids"] for row in rows], pad, "cpu"),
        "desirable": torch.tensor([row["label"] for row in rows]),
        "ref_logps": torch.tensor([row["ref_logp"] for row in rows]),
        "ref_other_logps": torch.tensor([row["ref_other_logp"] for row in rows]),
    }


class FeedbackTrainer(OwnLoss):
    """Its `feedback_loss` and `beta` are the stage's."""

    feedback_loss: FeedbackLoss
    beta: float
    z0_held_out: Tensor

    def rows_in(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def losses(self, model: Any, batch: Batch) -> Tensor:
        desirable = batch["desirable"]
        z0 = batch["z0"] if model.training else self.z0_held_out
        logps = token_logps(model, batch).sum(dim=1)
        ratios = logps - batch["ref_logps"]
        rewards = self.beta * ratios
        for side, mask in (("chosen", desirable), ("rejected", ~desirable)):
            self.note({f"rewards/{side}": rewards[mask], f"logps/{side}": logps[mask]})
        self.note({"rewards/accuracies": ((ratios > z0) == desirable).float(), "rewards/z0": z0.expand(1)})
        return self.feedback_loss(ratios, desirable, z0)

    def reference_point(self, batches: list[Batch]) -> Tensor:
        """z0 over all rows of these batches, a scalar without gradient."""
        import torch

        with torch.no_grad():
            prepared: list[Batch] = [self._prepare_inputs(batch) for batch in batches]
            ratios = [
                token_logps(self.model, batch["other"]).sum(dim=1) - batch["ref_other_logps"] for batch in prepared
            ]
        return self.mean_of(ratios).clamp(min=0)

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any) -> Any:
        batches, rows = super().get_batch_samples(epoch_iterator, num_batches, device)
        z0 = self.reference_point(self.own_rows(batches)) if batches else None
        return [{**batch, "z0": z0} for batch in batches], rows

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.z0_held_out = self.reference_point(list(self.get_eval_dataloader()))
        return super().evaluate(*args, **kwargs)
