"""Reward model: one scalar for a prompt with its completion, higher for what people chose.

Bradley and Terry 1952; Stiennon et al. 2020 (arXiv:2009.01325), equation 1. With r the scalar read at the last token:

    L = - log sigmoid(r(x, chosen) - r(x, rejected))

The loss knows differences only, so r is free up to a constant; an offset measured on held-out chosen completions
brings their mean to 0, so that scores of different reward models can be read side by side. TRL's RewardTrainer
computes the loss.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from artifacts.errors import DataError
from artifacts.kinds import Artifact, Dataset, Preferences, RewardModel
from tasks.context import Context
from tasks.memory import rows as row_memory
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.parallel.settings import SHARDED, WHOLE, Modes
from tasks.shape import ModelShape
from tasks.stage import Terms
from tasks.statistics import wins
from tasks.tuning import OnBase


class Reward(OnBase):
    """Trains a scalar head with an adapter of its own on the base, or with `lora: null` all weights."""

    modes: ClassVar[Modes] = (*WHOLE, *SHARDED)

    data: Preferences
    eval_rows: int = Field(64, ge=0)
    """Held-out pairs for the figures along the way; the final accuracy is always over all of them."""

    def output(self, key: str, path: Path) -> Artifact:
        return RewardModel(key=key, path=path, base=self.base)

    def dataset(self) -> Dataset:
        return self.data

    def trained(self, shape: ModelShape, terms: Terms = Terms()) -> int | None:  # noqa: B008  (immutable)
        """The adapter, fresh or taken over, or all weights; and the head."""
        counted = super().trained(shape, terms)
        return None if counted is None else counted + shape.hidden

    def memory_of(self, case: Case) -> Memory:
        return row_memory.reward(replace(case, head=case.shape.hidden))

    def run(self, ctx: Context) -> dict[str, float]:
        from datasets import Dataset as Rows
        from trl import RewardConfig, RewardTrainer  # type: ignore[attr-defined]

        from tasks.training.classifier import classifier, save_reward
        from tasks.training.logps import trunk_of
        from tasks.training.models import load_tokenizer
        from tasks.training.rows import load_rows, pair_length
        from tasks.training.shared_prompt import share_prompts
        from tasks.training.trainer import arguments, fit, ids_only

        rows, held_out = load_rows(self.data, "train"), load_rows(self.data, "test")
        if not held_out:
            raise DataError("wanted held-out pairs to measure the reward model on; set the data's test_size")
        lengths = [pair_length(row) for row in rows]
        model = classifier(self.base, self.lora, self.adapter, ctx)
        share_prompts(trunk_of(model))
        tests = held_out[: self.eval_rows]
        trainer = ids_only(RewardTrainer, lengths, self, ctx)(
            model=model,
            args=arguments(RewardConfig, self, ctx, len(rows), len(tests), disable_dropout=False),
            train_dataset=Rows.from_list([whole_ids(row) for row in rows]),
            eval_dataset=Rows.from_list([whole_ids(row) for row in tests]) if tests else None,
            processing_class=load_tokenizer(self.base),
        )
        metrics = fit(trainer, self, ctx, lengths)
        scores = save_reward(model, self.base, held_out, ctx)
        return {**metrics, **judged(scores, held_out, ctx)}


def whole_ids(row: dict[str, Any]) -> dict[str, list[int]]:
    """Prompt and completion as one sequence, for each side of the pair."""
    return {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")}


def judged(scores: list[tuple[float, float]], rows: list[dict[str, Any]], ctx: Context) -> dict[str, float]:
    """Held-out accuracy, beside what "the longer completion wins" would get; ties count half.

    `scores` are (chosen, rejected) for each row.
    """
    lengths = [(float(len(row["chosen_ids"])), float(len(row["rejected_ids"]))) for row in rows]
    accuracy, longer = sum(wins(scores)) / len(rows), sum(wins(lengths)) / len(rows)
    ctx.say(f"held-out accuracy {accuracy:.1%} on {len(rows)} pairs; the longer completion wins: {longer:.1%}")
    margin = sum(chosen - rejected for chosen, rejected in scores) / len(scores)
    return {"eval/reward_accuracy": accuracy, "eval/length_baseline": longer, "eval/reward_margin": margin}
