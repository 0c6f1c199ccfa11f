"""Names that PPO's settings have in older TRL and in other trainers, and what to write here instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, Any]


def _as(name: str) -> Callable[[Any, Fields], str]:
    return lambda value, fields: f"{name}: {value}"


def _mini_batches(value: Any, fields: Fields) -> str:
    """`mini_batch_size` counts rows, `num_mini_batches` counts steps."""
    batch = fields.get("batch_size", 32)
    if not (isinstance(value, int) and isinstance(batch, int)) or value < 1 or batch % value:
        return "num_mini_batches: the number of optimizer steps in a pass over batch_size episodes"
    return f"num_mini_batches: {batch // value} (batch_size {batch} in minibatches of {value})"


def _controller(value: Any, fields: Fields) -> str:
    return f"kl_controller: {'adaptive' if value else 'fixed'}"


def _epochs(value: Any, fields: Fields) -> str:
    return f"num_ppo_epochs: {value} for passes over a rollout, or total_episodes for the length of training"


def _steps(value: Any, fields: Fields) -> str:
    batch = fields.get("batch_size", 32)
    known = isinstance(value, int) and isinstance(batch, int)
    return f"total_episodes: {value * batch if known else 'rollouts times batch_size'}"


RENAMED: dict[str, Callable[[Any, Fields], str]] = {
    "init_kl_coef": _as("kl_coef"),
    "kl_coeff": _as("kl_coef"),
    "beta": _as("kl_coef"),
    "adap_kl_ctrl": _controller,
    "target": _as("target_kl"),
    "ppo_epochs": _as("num_ppo_epochs"),
    "epochs": _epochs,
    "num_train_epochs": _epochs,
    "mini_batch_size": _mini_batches,
    "ppo_mini_batch_size": _mini_batches,
    "steps": _steps,
    "max_steps": _steps,
    "response_length": _as("max_new_tokens"),
    "max_completion_length": _as("max_new_tokens"),
    "cliprange_reward": _as("cliprange_score"),
    "clip_range": _as("cliprange"),
    "eps_clip": _as("cliprange"),
    "value_clip": _as("cliprange_value"),
    "lambda": _as("lam"),
    "lr": _as("learning_rate"),
    "critic_learning_rate": _as("value_learning_rate"),
    "early_stopping": lambda value, fields: "early_stop_kl: the limit itself; null for none",
    "non_eos_penalty": lambda value, fields: "missing_eos_penalty: what to take from the score; null for nothing",
    "score_clip": _as("cliprange_score"),
    "whiten_advantage": _as("whiten_advantages"),
    "reward_model": _as("reward"),
    "lr_scheduler_type": _as("schedule"),
}
