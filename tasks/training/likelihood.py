"""What a policy finds likely: loss and preference accuracy on held-out rows, and its distance from a reference."""

from __future__ import annotations

import math
from typing import Any

from artifacts.kinds import Model
from tasks.context import Context
from tasks.statistics import wins
from tasks.training.logps import padded, token_logps
from tasks.training.models import load_model
from tasks.training.rows import batches


def row_logps(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], name: str, size: int, ctx: Context
) -> list[float]:
    """log p of each row's completion `name`, summed over its tokens, in the rows' order."""
    found = [0.0] * len(rows)
    lengths = [len(row["prompt_ids"]) + len(row[name]) for row in rows]
    done = 0
    for batch in batches(rows, lengths, size):
        prompts, completions = [row["prompt_ids"] for _, row in batch], [row[name] for _, row in batch]
        logps = token_logps(model, padded(prompts, completions, tokenizer.pad_token_id, ctx.device())).sum(dim=1)
        for (position, _), value in zip(batch, logps.tolist(), strict=True):
            found[position] = value
        done += len(batch)
        ctx.progress(done, len(rows), f"{name.removesuffix('_ids')} rows read")
    return found


def likelihoods(model: Any, tokenizer: Any, rows: list[dict[str, Any]], size: int, ctx: Context) -> dict[str, float]:
    """Loss a token and perplexity on the right completions (of feedback, the desirable ones); on pairs, how often the
    chosen one is likelier a token.

    `eval/preference_accuracy` compares mean log-probabilities a token, so that no policy gains by length alone.
    """
    rows = [row for row in rows if row.get("label", True)] or rows
    right = "completion_ids" if "completion_ids" in rows[0] else "chosen_ids"
    logps = row_logps(model, tokenizer, rows, right, size, ctx)
    tokens = [len(row[right]) for row in rows]
    loss = -sum(logps) / sum(tokens)
    metrics = {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 50.0))}
    if right == "chosen_ids":
        other = row_logps(model, tokenizer, rows, "rejected_ids", size, ctx)
        means = [logp / count for logp, count in zip(logps, tokens, strict=True)]
        others = [logp / len(row["rejected_ids"]) for logp, row in zip(other, rows, strict=True)]
        decided = wins(list(zip(means, others, strict=True)))
        metrics["eval/preference_accuracy"] = sum(decided) / len(decided)
    return metrics


def kl_to(
    model: Any, reference: Model, tokenizer: Any, results: list[dict[str, Any]], size: int, ctx: Context
) -> float:
    """The mean log-ratio to the reference on the completions that the policy wrote, in nats a completion.

    Where they were sampled at temperature 1 it estimates KL(policy || reference).
    """
    mine = row_logps(model, tokenizer, results, "completion_ids", size, ctx)
    theirs = row_logps(load_model(reference, ctx.device()), tokenizer, results, "completion_ids", size, ctx)
    return sum(a - b for a, b in zip(mine, theirs, strict=True)) / len(results)
