"""Sampling n completions of each prompt and keeping the best, a few prompts at a time, so that a crash costs little."""

from __future__ import annotations

from typing import Any

from artifacts.fingerprint import canonical
from artifacts.jsonl import read_jsonl
from artifacts.syncing import write_whole
from tasks.context import Context
from tasks.rl.rewards import Rewards, Scored
from tasks.rl.sampler import Sampled, Sampler, row_draws
from tasks.rl.settings import Sampling, stop_ids
from tasks.training.models import base_tokenizer, load_model
from tasks.training.sampling import merged

PROMPTS_AT_ONCE = 8
SAMPLING_BATCH = 32


def sample_best(stage: Sampling, n: int, rows: list[dict[str, Any]], ctx: Context) -> list[dict[str, Any]]:
    """For each row `best` (the row with its completion, or None if none ended), `best_score` and `mean_score`."""
    done = ctx.work / "sampled.jsonl"
    found = read_jsonl(done) if done.exists() else []
    write_whole(done, "".join(map(_line, found)))  # without a line that a crash cut off
    if found:
        ctx.say(f"{len(found)} of {len(rows)} prompts were sampled before")
    best = Best(stage, n, ctx) if len(found) < len(rows) else None
    while best is not None and len(found) < len(rows):
        new = best(rows[len(found) : len(found) + PROMPTS_AT_ONCE])
        with done.open("a") as file:
            file.writelines(map(_line, new))
        found += new
        ctx.progress(len(found), len(rows), "prompts", score=new[-1]["mean_score"])
    return found


def _line(one: dict[str, Any]) -> str:
    return canonical(one) + "\n"


class Best:
    """A policy, and what scores it."""

    def __init__(self, stage: Sampling, n: int, ctx: Context) -> None:
        self.stage, self.n, self.seed = stage, n, ctx.seed
        tokenizer = base_tokenizer(stage.policy)
        self.rewards = Rewards(stage, tokenizer, ctx)
        self.model = load_model(stage.policy, ctx.device())
        self.sampler = Sampler(
            self.model, stop_ids=stop_ids(tokenizer, "eos"), pad=tokenizer.pad_token_id,
            temperature=stage.temperature, max_new_tokens=stage.max_new_tokens, batch_size=SAMPLING_BATCH,
        )  # fmt: skip

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The best of n for each of some rows; a row's completions depend on the seed, its number and the policy."""
        import torch

        copies = [row for row in rows for _ in range(self.n)]
        count = self.stage.max_new_tokens
        draws = torch.cat([row_draws(self.seed, f"prompt {row['row']}", range(self.n), count) for row in rows])
        with merged(self.model):
            sampled = self.sampler([row["prompt_ids"] for row in copies], draws)
        scored = self.rewards(copies, [one.ids for one in sampled])
        return [self._best(row, at * self.n, scored, sampled) for at, row in enumerate(rows)]

    def _best(self, row: dict[str, Any], start: int, scored: Scored, sampled: list[Sampled]) -> dict[str, Any]:
        places = range(start, start + self.n)
        ended = [i for i in places if not scored.truncated[i]]
        mean = sum(scored.totals[i] for i in places) / self.n
        if not ended:
            return {"best": None, "best_score": None, "mean_score": mean}
        best = max(ended, key=lambda i: (scored.totals[i], -i))  # the first of equals
        made = {**row, "completion": scored.texts[best], "completion_ids": sampled[best].ids}
        return {"best": made, "best_score": scored.totals[best], "mean_score": mean}
