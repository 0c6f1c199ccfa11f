"""Evaluation of one policy on held-out rows: what it writes, what it finds likely, and what judges say of it.

One stage a policy, so that a new branch evaluates nothing again. Every policy gets the same prompts, the same seed and
the same judges; the reports are joined afterwards. Completions are judged by the row's own check where it has one,
else by the reward model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from artifacts.errors import DataError
from artifacts.fingerprint import canonical
from artifacts.jsonl import read_jsonl
from artifacts.kinds import Adapter, Artifact, Dataset, Model, Report, RewardModel
from tasks.checks import passes
from tasks.context import Context
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.online import Sampled
from tasks.memory.parts import Memory
from tasks.memory.reading import evaluate
from tasks.rl.settings import judge_of
from tasks.shape import ModelShape
from tasks.stage import Stage, Terms
from tasks.statistics import mean_interval, share_interval, win_rate

Rows = list[dict[str, Any]]


class Evaluate(Stage):
    """Measures `policy` on the held-out split of `data`."""

    version: ClassVar[int] = 4  # 3 took a prompt of several rows for as many prompts

    policy: Model
    data: Dataset
    reward: RewardModel | None = None
    """Scores every completion."""
    reference: Model | None = None
    """KL is measured against this one: the mean log-ratio on the completions that the policy wrote. At `temperature` 1
    that estimates the KL; at 0, the default, it is the log-ratio of the likeliest completions."""
    against: Report | None = None
    """Another policy's report, over which the win rate is counted."""
    max_prompts: int | None = Field(None, ge=1)
    """Use only the first so many held-out rows. Of rows with one prompt it is completed and judged once: completions
    of the same prompt are no independent ones."""
    max_scored: int | None = Field(None, ge=1)
    """Take loss, preference accuracy and KL on only the first so many of them; they cost more than they vary."""
    max_new_tokens: int = Field(48, ge=1)
    """Tokens in a completion; one that has not ended by then counts as truncated."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token each time; above, samples with the stage's seed."""
    batch_size: int = Field(64, ge=1)
    """Rows at a time. A field, since padding may move the last bits and with them a greedy choice."""

    def output(self, key: str, path: Path) -> Artifact:
        return Report(key=key, path=path)

    def loaded(self) -> Model | None:
        return self.policy

    def row_bound(self, terms: Terms) -> Lengths | None:
        """The longest prompt, with a completion as long as may be."""
        lengths = Lengths.of(self.data, terms.bounds)
        return None if lengths is None else Lengths(1, [lengths.longest_prompt], [[self.max_new_tokens]])

    def memory(self, terms: Terms) -> Memory | None:
        shape, lengths = ModelShape.of(self.policy), Lengths.of(self.data, terms.bounds)
        judge = None if self.reward is None else judge_of(self.reward, terms)
        adapted = Adapted.start(shape, self.policy, None, terms.adapters) if shape else None
        unknown = (self.reward and not judge) or (isinstance(self.policy, Adapter) and not adapted)
        if shape is None or lengths is None or unknown:
            return None
        held_out = self.data.test_rows() or self.batch_size
        rows = min(self.batch_size, held_out, self.max_prompts or held_out)
        other = ModelShape.of(self.reference) if self.reference is not None else None
        return evaluate(
            shape, adapted, terms.kind, Sampled(rows, lengths.longest_prompt, self.max_new_tokens), lengths.longest_row,
            other.weight_bytes if other else None, judge,
        )  # fmt: skip

    def run(self, ctx: Context) -> dict[str, float]:
        import torch

        from tasks.training.rows import distinct_prompts, load_rows

        rows = load_rows(self.data, "test")[: self.max_prompts]
        if not rows:
            raise DataError("evaluate: the data has no held-out rows; set its test_size or test_source")
        prompts = distinct_prompts(rows)
        torch.manual_seed(ctx.seed)
        with torch.no_grad():
            results, metrics = self._measure(rows, prompts, ctx)
        metrics |= self._judge(prompts, results, ctx)
        self._write(results, metrics, ctx)
        return metrics

    def _measure(self, rows: Rows, prompts: Rows, ctx: Context) -> tuple[Rows, dict[str, float]]:
        """Everything that needs the policy in memory."""
        from tasks.training.likelihood import kl_to, likelihoods
        from tasks.training.models import base_tokenizer, load_model
        from tasks.training.sampling import sample

        tokenizer = base_tokenizer(self.policy)
        model = load_model(self.policy, ctx.device())
        scored = rows[: self.max_scored]
        results = sample(
            model, tokenizer, prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature,
            batch_size=self.batch_size, ctx=ctx,
        )  # fmt: skip
        metrics = likelihoods(model, tokenizer, scored, self.batch_size // 2 or 1, ctx)
        if self.reference is not None:
            short = results[: self.max_scored]
            metrics["eval/kl_to_reference"] = kl_to(
                model, self.reference, tokenizer, short, self.batch_size // 2 or 1, ctx
            )
        return results, metrics

    def _judge(self, rows: Rows, results: Rows, ctx: Context) -> dict[str, float]:
        """Checks, scores, lengths, and wins over the other report; fills them into `results`."""
        metrics = {
            "eval/length_mean": sum(len(result["completion_ids"]) for result in results) / len(results),
            "eval/truncated_rate": sum(result["truncated"] for result in results) / len(results),
            "eval/prompts": float(len(results)),
        }
        if self.reward is not None:
            from tasks.training.classifier import score_rows

            scores = score_rows(self.reward, results, "completion_ids", ctx)
            for result, value in zip(results, scores, strict=True):
                result["score"] = value
            mean, low, high = mean_interval(scores)
            metrics |= {"eval/score_mean": mean, "eval/score_mean_low": low, "eval/score_mean_high": high}
        checked = [(row, result) for row, result in zip(rows, results, strict=True) if "check" in row]
        for row, result in checked:
            result["passed"] = passes(row["check"], result["completion"])
            result["check"] = row["check"]
        if checked:
            rate, low, high = share_interval([result["passed"] for _, result in checked])
            metrics |= {"eval/check_rate": rate, "eval/check_rate_low": low, "eval/check_rate_high": high}
        if self.against is not None:
            metrics |= self._wins(results, ctx)
        return metrics

    def _wins(self, results: Rows, ctx: Context) -> dict[str, float]:
        """Over the prompts of both reports; scores decide only if one reward model gave both."""
        assert self.against is not None
        theirs = {(other["row"], other["prompt"]): other for other in read_completions(self.against.path)}
        pairs = [(result, theirs[at]) for result in results if (at := (result["row"], result["prompt"])) in theirs]
        if not pairs:
            raise DataError("against: that evaluation has none of these prompts; give both the same data")
        other_reward = json.loads((self.against.path / "report.json").read_text())["reward"]
        if self.reward is None or other_reward != self.reward.key:
            pairs = [(mine, other) for mine, other in pairs if "passed" in mine and "passed" in other]
        both = [(outcome(mine), outcome(other)) for mine, other in pairs]
        decided = [(mine, other) for mine, other in both if mine is not None and other is not None]
        if not decided:
            return {}
        rate, low, high = win_rate(decided, ctx.seed)
        return {"eval/win_rate": rate, "eval/win_rate_low": low, "eval/win_rate_high": high}

    def _write(self, results: list[dict[str, Any]], metrics: dict[str, float], ctx: Context) -> None:
        (ctx.out / "completions.jsonl").write_text("".join(canonical(result) + "\n" for result in results))
        judge = "check" if any("passed" in result for result in results) else "reward" if self.reward else None
        report = {
            "policy": self.policy.key, "judge": judge, "metrics": metrics, "by_kind": by_kind(results),
            "reward": self.reward.key if self.reward else None,
            "against": self.against.key if self.against else None,
        }  # fmt: skip
        (ctx.out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
        shown = {name.removeprefix("eval/"): value for name, value in metrics.items() if math.isfinite(value)}
        ctx.say("  ".join(f"{name} {value:.3g}" for name, value in shown.items()))


def outcome(result: dict[str, Any]) -> float | None:
    """What decides a comparison: the check's verdict where there is one, else the score, else nothing."""
    if "passed" in result:
        return float(result["passed"])
    return result.get("score")


def by_kind(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The check rate and number of rows of each kind of check."""
    kinds: dict[str, list[bool]] = {}
    for result in results:
        if "passed" in result:
            kinds.setdefault(result["check"]["kind"], []).append(result["passed"])
    return {kind: {"rate": sum(found) / len(found), "rows": len(found)} for kind, found in sorted(kinds.items())}


def read_completions(report: Path) -> list[dict[str, Any]]:
    """The completions of a report, in the order of the held-out rows."""
    return read_jsonl(report / "completions.jsonl")
