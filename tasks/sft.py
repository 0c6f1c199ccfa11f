"""Supervised fine-tuning: make the demonstrations likely.

    L = - sum_t log p(y_t | x, y_<t) / N        over the N completion tokens of the batch, EOS included

The prompt's tokens carry no loss, so the model learns to answer and not to ask. TRL's SFTTrainer computes it, with
the token count of the whole batch as N, so that the micro-batch makes no difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from artifacts.errors import DataError
from artifacts.kinds import Adapter, Artifact, Checkpoint, Dataset, Demonstrations
from tasks.context import Context
from tasks.parallel.settings import SHARDED, WHOLE, Modes
from tasks.tuning import OnBase


class SFT(OnBase):
    """Trains an adapter on the base, a fresh one or one that goes on, or with `lora: null` all weights."""

    modes: ClassVar[Modes] = (*WHOLE, *SHARDED)

    data: Demonstrations
    eval_rows: int = Field(64, ge=0)
    """Held-out rows on which the loss is measured before, during and after training; 0 for none."""

    def output(self, key: str, path: Path) -> Artifact:
        whole = self.lora is None and self.adapter is None
        if whole:
            return Checkpoint(key=key, path=path, like=self.base)
        return Adapter(key=key, path=path, base=self.base)

    def dataset(self) -> Dataset:
        return self.data

    def run(self, ctx: Context) -> dict[str, float]:
        from datasets import Dataset as Rows
        from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

        from tasks.training.rows import load_rows
        from tasks.training.trainable import save_trained, trainable
        from tasks.training.trainer import arguments, fit, ids_only

        rows, tests = load_rows(self.data, "train"), load_rows(self.data, "test")[: self.eval_rows]
        train, held_out = [labelled(row) for row in rows], [labelled(row) for row in tests]
        lengths = [len(row["input_ids"]) for row in train]
        model, tokenizer = trainable(self.start(), None if self.adapter else self.lora, ctx)
        require_eos(rows, tokenizer.eos_token_id)
        tokens = [sum(label != -100 for label in row["labels"][1:]) for row in train]
        counts = dict.fromkeys(("loss", "entropy", "mean_token_accuracy"), tokens)
        trainer = ids_only(SFTTrainer, lengths, self, ctx, counts)(
            model=model,
            args=arguments(SFTConfig, self, ctx, len(rows), len(tests), dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Rows.from_list(train),
            eval_dataset=Rows.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
        )
        metrics = fit(trainer, self, ctx, lengths, evaluate_before=True)
        save_trained(model, self.start(), ctx)
        return metrics


def labelled(row: dict[str, Any]) -> dict[str, list[int]]:
    """`input_ids` and `labels`: -100 on the prompt, the token itself on the completion."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def require_eos(rows: list[dict[str, Any]], eos: int) -> None:
    """Raise DataError if no row's EOS is supervised: the model would never learn to stop."""
    if not any(row["completion_ids"][-1] == eos for row in rows):
        raise DataError(
            f"row {rows[0]['row']} and all {len(rows) - 1} others lost their EOS to max_length, so the model would "
            "never learn to stop; raise the data stage's max_length or set `overlong: drop`"
        )
