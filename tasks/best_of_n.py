"""Best of n: sample n completions of each prompt, keep the best, and train on it as on a demonstration.

The honest baseline of reinforcement learning from a reward: no gradient of the reward, no KL penalty, one knob. (As a
way of answering: Nakano et al. 2021, arXiv:2112.09332, section 3; as a way of training, "rejection sampling" in Touvron
et al. 2023, arXiv:2307.09288, section 3.2.3, and RAFT, Dong et al. 2023, arXiv:2304.06767.) The policy that answers
with the best of n is from the one that it samples from at a KL of at most

    log n - (n - 1) / n   nats

so n = 8 costs 1.2 nats and n = 64 costs 3.2. This stage writes demonstrations; an `sft` stage trains on them, from the
base or on with an adapter (`adapter`). What does not beat it does not earn its complexity.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from artifacts.errors import DataError
from artifacts.kinds import Adapter, Artifact, Demonstrations, Model
from tasks.context import Context
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.parts import Memory
from tasks.memory.reading import SAMPLING_BATCH, sample
from tasks.rl.settings import Sampling
from tasks.shape import ModelShape
from tasks.splits import write_split
from tasks.stage import Terms


class BestOfN(Sampling):
    """Demonstrations: the training prompts of `data`, each with the best of `n` completions of `policy`."""

    version: ClassVar[int] = 2  # 1 rounded the adapter into bfloat16 weights while it sampled
    goes_on_from: ClassVar[str] = "sampled.jsonl"
    n: int = Field(8, ge=2)
    """Completions of each prompt."""
    max_prompts: int | None = Field(None, ge=1)
    """Use only the first so many distinct prompts."""

    def output(self, key: str, path: Path) -> Artifact:
        return Demonstrations(key=key, path=path, base=self.data.base)

    def row_bound(self, terms: Terms) -> Lengths | None:
        """A completion of at most `max_new_tokens` for each prompt there may be."""
        lengths, how = Lengths.of(self.data, terms.bounds), self.sampled(1, terms)
        if lengths is None or how is None:
            return None
        return Lengths.at_most(min(lengths.rows, self.max_prompts or lengths.rows), how.tokens, 1)

    def loaded(self) -> Model | None:
        return self.policy

    def memory(self, terms: Terms) -> Memory | None:
        shape, how = ModelShape.of(self.policy), self.sampled(SAMPLING_BATCH, terms)
        judge, adapter = self.judge(terms), isinstance(self.policy, Adapter)
        adapted = Adapted.start(shape, self.policy, None, terms.adapters) if shape else None
        if shape is None or how is None or (self.reward and not judge) or (adapter and not adapted):
            return None
        return sample(shape, adapted, terms.kind, how, judge)

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.rl.best import sample_best
        from tasks.training.rows import distinct_prompts, load_rows

        rows = distinct_prompts(load_rows(self.data, "train"))[: self.max_prompts]
        self.require_room(rows)
        found = sample_best(self, self.n, rows, ctx)
        kept = [one["best"] for one in found if one["best"] is not None]
        if not kept:
            raise DataError(
                f"of {len(rows)} prompts none has a completion that ends within max_new_tokens "
                f"{self.max_new_tokens}; raise it"
            )
        tests = [row for row in map(demonstration, load_rows(self.data, "test")) if row is not None]
        report = self._write(kept, tests, len(rows), ctx)
        gain = [one["best_score"] - one["mean_score"] for one in found if one["best"] is not None]
        means = [one["mean_score"] for one in found]
        ctx.say(
            f"kept the best of {self.n} for {len(kept)} of {len(rows)} prompts; mean score "
            f"{sum(means) / len(means):.3g}, the kept are {sum(gain) / len(gain):.3g} above; KL to the policy at most "
            f"{self.kl_bound():.2f} nats"
        )
        return {
            "data/rows_train": float(len(kept)), "data/rows_test": float(len(tests)),
            "data/tokens_train": float(report["train"]["tokens"]), "score/mean": sum(means) / len(means),
            "score/gain": sum(gain) / len(gain), "objective/kl_bound": self.kl_bound(),
        }  # fmt: skip

    def kl_bound(self) -> float:
        """log n - (n - 1) / n, in nats."""
        return math.log(self.n) - (self.n - 1) / self.n

    def _write(
        self, kept: list[dict[str, Any]], tests: list[dict[str, Any]], prompts: int, ctx: Context
    ) -> dict[str, Any]:
        left_out = {"no completion ended": prompts - len(kept)} if len(kept) < prompts else {}
        report: dict[str, Any] = {"form": "demonstrations", "rows_in": prompts, "left_out": left_out}
        for split, rows in (("train", kept), ("test", tests)):
            report[split] = {**write_split(rows, ctx.out / f"{split}.jsonl"), "truncated": 0}
        (ctx.out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
        return report


def demonstration(row: dict[str, Any]) -> dict[str, Any] | None:
    """A held-out row as a demonstration, its chosen or desirable completion; None for an undesirable one."""
    side = "chosen" if "chosen" in row else "completion"
    if not row.get("label", True):
        return None
    kept: dict[str, Any] = {name: row[name] for name in ("row", "prompt", "prompt_ids", "check") if name in row}
    return {**kept, "completion": row[side], "completion_ids": row[f"{side}_ids"]}
