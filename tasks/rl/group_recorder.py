"""The log of TRL's trainers that sample, in our metric names, on the axis of episodes seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from tasks.context import Context
from tasks.rl.groups import Groups, Order
from tasks.training.recorder import StepRecorder
from tasks.training.rows import distinct_prompts, load_rows

NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "entropy": "policy/entropy",
    "reward": "objective/scores",
    "reward_std": "objective/scores_std",
    "frac_reward_zero_std": "objective/equal_groups",
    "clip_ratio/region_mean": "policy/clipfrac_avg",
    "completions/mean_length": "completions/mean_length",
    "completions/max_length": "completions/max_length",
    "completions/truncated": "completions/clipped_ratio",
    "objective/kl": "objective/kl",
    "objective/entropy": "objective/entropy",
}
"""TRL's own `completions/clipped_ratio` takes a last token that is PAD for an end; ours asks for EOS."""
LENGTH = "completions/mean_length"


class GroupRecorder(StepRecorder):
    """With the names and figures of methods that sample."""

    must_learn_at_once = False  # a rollout whose completions all score alike teaches nothing, and may come first

    def __init__(self, ctx: Context, stage: Groups) -> None:
        super().__init__(ctx)
        self.stage, self.saves_at = stage, stage.num_iterations
        self._length = 0.0

    def renamed(self, name: str) -> str | None:
        return name if name.startswith("scores/") else NAMES.get(name)

    def samples(self, state: Any) -> int:
        return math.ceil(state.global_step / self.stage.num_iterations) * self.stage.batch_size

    def tokens_seen(self, state: Any) -> int:
        return int(state.num_input_tokens_seen)

    def rows_at(self, step: int) -> list[int]:
        rows = distinct_prompts(load_rows(self.stage.data, "train"))
        size, start = self.stage.batch_size, step // self.stage.num_iterations * self.stage.batch_size
        places = itertools.islice(Order(self.stage, len(rows), self.ctx.seed), start, start + size)
        return list(dict.fromkeys(rows[place]["row"] for place in places))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=self._a_completion(logs or {}), **kwargs)

    def _a_completion(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """With KL and entropy of a whole completion: TRL's are means over tokens."""
        self._length = logs.get(LENGTH) or self._length
        whole = {f"objective/{name}": logs[name] * self._length for name in ("kl", "entropy") if name in logs}
        return {**logs, **whole}

    def log(self, metrics: dict[str, float], state: Any) -> None:
        if "objective/scores" in metrics:
            metrics["objective/kl_coef"] = self.stage.kl_coef
        if "objective/scores" in metrics and "objective/kl" in metrics:
            penalty = -self.stage.kl_coef * metrics["objective/kl"]
            metrics["objective/non_score_reward"] = penalty
            metrics["objective/rlhf_reward"] = metrics["objective/scores"] + penalty
        super().log(metrics, state)

    def validated(self, metrics: dict[str, float], state: Any) -> None:
        """A point of held-out figures, before the first step or after the last; once, however often that is run."""
        known = [point for point in self.points() if point["optimizer_step"] == state.global_step]
        if metrics and not any(metrics.keys() & point["metrics"].keys() for point in known):
            self.log(metrics, state)
        self.last.update(metrics)

    def shown(self) -> dict[str, float]:
        names = {"score": "objective/scores", "KL": "objective/kl"}
        return {short: self.last.get(name, float("nan")) for short, name in names.items()}

    def headline(self, state: Any) -> dict[str, float]:
        """The last value of every metric, the held-out ones before training too, and the tokens trained on."""
        found = {name: value for name, value in self.last.items() if name != "train/tokens_per_second"}
        found |= {f"{name}_before": value for name, value in self.before.items() if name.startswith("validation/")}
        return {**found, "cost/tokens": float(self.tokens_seen(state))}
