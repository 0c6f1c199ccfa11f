"""What completions are worth, for the stages whose trainers only ask for a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from artifacts.errors import StageError
from artifacts.kinds import RewardModel
from tasks.context import Context
from tasks.rl.programs import Programs
from tasks.rl.settings import Sampling
from tasks.training.logps import padded
from tasks.training.rows import batches
from tasks.training.scoring import load_reward, score

SCORING_BATCH = 16


@dataclass
class Scored:
    """One number a completion in each list."""

    totals: list[float]
    """The sum of all rewards by weight, less the penalty for truncation."""
    parts: dict[str, list[float]]
    """Each reward by name, unweighted."""
    truncated: list[bool]
    texts: list[str]

    def sample(self, rows: list[dict[str, Any]], i: int) -> dict[str, Any]:
        """The completion at a place, to be looked at."""
        return {
            "prompt": rows[i]["prompt"], "completion": self.texts[i], "score": self.totals[i],
            "truncated": self.truncated[i],
        }  # fmt: skip


class Rewards:
    """The rewards of a stage: its reward model, its programs, its penalty for truncation."""

    def __init__(self, stage: Sampling, tokenizer: Any, ctx: Context) -> None:
        self.stage, self.tokenizer = stage, tokenizer
        self.programs = Programs(stage.programs)
        self.model = RewardScorer(stage.reward, tokenizer, ctx) if stage.reward is not None else None

    def __call__(self, rows: list[dict[str, Any]], completions: list[list[int]]) -> Scored:
        """Score completions, as ids up to and with EOS, of `rows`; raises StageError if a reward is no number."""
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completions]
        truncated = [self.tokenizer.eos_token_id not in ids for ids in completions]
        parts = self.programs(rows, texts)
        totals = self.programs.weighted(parts, len(rows))
        if self.model is not None:
            parts["reward_model"] = self.model(rows, completions)
            weight = self.stage.reward_weight
            totals = [total + weight * value for total, value in zip(totals, parts["reward_model"], strict=True)]
        penalty = self.stage.missing_eos_penalty or 0.0
        totals = [total - penalty * cut for total, cut in zip(totals, truncated, strict=True)]
        return Scored(totals, parts, truncated, texts)


class RewardScorer:
    """A reward model in memory: scores prompts with completions exactly as they were sampled."""

    def __init__(self, reward: RewardModel, tokenizer: Any, ctx: Context) -> None:
        self.pad, self.device = tokenizer.pad_token_id, ctx.device()
        self.model, self.head = load_reward(reward, self.device)

    def __call__(self, rows: list[dict[str, Any]], completions: list[list[int]]) -> list[float]:
        """One score a completion, in the rows' order, whatever they are batched with."""
        import torch

        scores = [0.0] * len(rows)
        pairs = list(zip((row["prompt_ids"] for row in rows), completions, strict=True))
        with torch.no_grad():
            for batch in batches(pairs, [len(prompt) + len(ids) for prompt, ids in pairs], SCORING_BATCH):
                together = padded([pair[0] for _, pair in batch], [pair[1] for _, pair in batch], self.pad, self.device)
                for (place, _), value in zip(batch, score(self.model, self.head, together).tolist(), strict=True):
                    scores[place] = value
        for row, value in zip(rows, scores, strict=True):
            if not math.isfinite(value):
                raise StageError(f"the reward model gave {value} on row {row['row']}: {row['prompt'][:120]!r}")
        return scores
