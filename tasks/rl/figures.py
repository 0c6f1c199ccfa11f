"""What is told of a rollout: its metrics, and some of its completions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from artifacts.errors import NumberError
from tasks.rl.objective import explained_variance, k3, masked_mean, sequence_kl
from tasks.rl.rollout import Rollout, on_tokens

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_ROWS = 8


def rollout_figures(rollout: Rollout, returns: Tensor, kl_coef: float) -> dict[str, float]:
    """Metrics of a rollout under the policy that wrote it; `returns` is (B, T)."""
    mask, scores = rollout.mask, rollout.scores
    kl = sequence_kl(rollout.logps, rollout.ref_logps, mask)
    lengths = mask.sum(dim=1).float()
    as_sampled = on_tokens(scores.new_tensor([logp for one in rollout.sampled for logp in one.logps]), mask)
    return {
        "objective/kl": float(kl.mean()),
        "objective/kl_k3": float(k3(rollout.logps, rollout.ref_logps, mask).sum() / len(kl)),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(-(rollout.logps * mask).sum(dim=1).mean()),
        "objective/scores": float(scores.mean()),
        "objective/scores_std": float(scores.std(unbiased=False)),
        "objective/non_score_reward": float(-kl_coef * kl.mean()),
        "objective/rlhf_reward": float(scores.mean() - kl_coef * kl.mean()),
        "policy/entropy": float(-masked_mean(rollout.logps, mask)),
        "val/explained_variance": explained_variance(rollout.values, returns, mask),
        "val/mean": float(masked_mean(rollout.values, mask)),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollout.truncated.float().mean()),
        "sampling/logp_difference": float(masked_mean((rollout.logps - as_sampled).abs(), mask)),
        **{f"scores/{name}": sum(values) / len(values) for name, values in rollout.parts.items()},
    }


def require_finite(point: dict[str, float]) -> None:
    """Raise NumberError for a figure that is no number."""
    for name, value in point.items():
        if not math.isfinite(value):
            raise NumberError(f"ppo: {name} became {value}; lower the learning rates")


def require_finite_tensors(tensors: dict[str, Tensor]) -> None:
    """Raise NumberError for a trained tensor that holds no numbers: the last step may have broken it."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NumberError(f"ppo: {name} became infinite or no number at the last step; lower learning_rate")


def shown_samples(rollout: Rollout, episodes: int) -> Iterator[dict[str, Any]]:
    """The first completions of a rollout, each with what was said of it."""
    kl = sequence_kl(rollout.logps, rollout.ref_logps, rollout.mask).tolist()
    for i, row in enumerate(rollout.rows[:SHOWN_ROWS]):
        yield {
            "episodes": episodes, "prompt": row["prompt"], "completion": rollout.texts[i],
            "score": float(rollout.scores[i]), "kl": kl[i], "truncated": bool(rollout.truncated[i]),
        }  # fmt: skip
