"""What goes wrong in PPO shows in its metrics first. Each alarm has a sign, a threshold and its likely cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Points = Sequence[Mapping[str, float]]
"""The metrics of all rollouts so far, the latest last."""


class Alarm(NamedTuple):
    """A sign of trouble, and what to think of first."""

    name: str
    rings: Callable[[Points], bool]
    sign: str
    cause: str


def _last(points: Points, name: str) -> float:
    return points[-1].get(name, 0.0)


def _for(points: Points, count: int, test: Callable[[Mapping[str, float]], bool]) -> bool:
    """Whether the latest `count` rollouts all pass the test."""
    return len(points) >= count and all(test(point) for point in points[-count:])


def _grew(points: Points, name: str, by: float) -> bool:
    """Whether the mean over the latest three rollouts is `by` times that of the first three."""
    first = sum(point[name] for point in points[:3]) / 3
    return sum(point[name] for point in points[-3:]) / 3 > by * first


ALARMS = (
    Alarm(
        "first_ratio", lambda points: _last(points, "val/first_ratio_deviation") > 1e-4,
        "a ratio differs from 1 before the first step of a rollout",
        "the pass that scores and the pass that trains disagree: dropout, another precision, or wrong positions",
    ),
    Alarm(
        "start_kl", lambda points: len(points) == 1 and abs(points[0]["objective/kl"]) > 1e-3,
        "the untrained policy is not its own reference",
        "the reference is another model than the one that training started from",
    ),
    Alarm(
        "negative_kl", lambda points: _for(points, 3, lambda point: point["objective/kl"] < -0.1),
        "the KL to the reference was below -0.1 nats in three rollouts in a row",
        "completions are not drawn from the distribution that is scored: a hidden warper, or another temperature",
    ),
    Alarm(
        "sampler", lambda points: _last(points, "sampling/logp_difference") > 0.05,
        "the sampler's log-probabilities are more than 0.05 off those of training",
        "half precision while sampling; ratios stay right, but the samples are not quite the policy's",
    ),
    Alarm(
        "clip_fraction", lambda points: _last(points, "policy/clipfrac_avg") > 0.3,
        "more than 30% of the tokens' ratios are clipped",
        "learning_rate is too high, or num_ppo_epochs too many",
    ),
    Alarm(
        "update_kl", lambda points: _last(points, "policy/approxkl_avg") > 0.1,
        "one rollout's updates moved the policy by more than 0.1 nats a token",
        "learning_rate is too high; early_stop_kl would hold it",
    ),
    Alarm(
        "value", lambda points: len(points) > 10 and _for(points, 5, lambda p: p["val/explained_variance"] < 0),
        "the value model predicts worse than a constant, five rollouts in a row",
        "value_learning_rate is too low, or so high that it diverges",
    ),
    Alarm(
        "length", lambda points: len(points) >= 8 and _grew(points, "completions/mean_length", 1.3)
        and points[-1]["objective/scores"] > points[0]["objective/scores"],
        "completions have become more than 30% longer while the score rose",
        "the reward may pay for length: read the samples; see the reward model's length baseline",
    ),
    Alarm(
        "entropy", lambda points: len(points) > 3 and points[-1]["policy/entropy"] < 0.2 * points[0]["policy/entropy"],
        "the policy's entropy has fallen below a fifth of what it was",
        "it repeats one answer: raise kl_coef, or lower learning_rate",
    ),
    Alarm(
        "truncated", lambda points: _for(points, 3, lambda point: point["completions/clipped_ratio"] > 0.8),
        "more than 80% of the completions are cut off, three rollouts in a row",
        "max_new_tokens is too low for this policy; missing_eos_penalty teaches it to stop",
    ),
)  # fmt: skip


def ringing(points: Points, *, ends: bool = True) -> list[Alarm]:
    """The alarms that the latest rollout sets off; completions that no token `ends` are all cut off, and rightly so."""
    return [alarm for alarm in ALARMS if alarm.rings(points) and (ends or alarm.name != "truncated")]
