"""What is left of a tuning when float32 weights are rounded to the dtype of the base."""

from __future__ import annotations

from tasks.context import Context
from tasks.training.weight_files import Weights

AT_A_TIME = 1 << 22
"""Elements compared at once, in float64: an embedding of a large model is gigabytes."""
SAID, REFUSED = 0.05, 0.5
"""Shares of a tuning above which its loss is said, and its result is refused."""


def lost_share(tuned: Weights, before: Weights) -> float:
    """|tuned - rounded|^2 / |tuned - before|^2 over all weights: 0 if nothing is lost, about 1 if the base is back.

    `before` has the names, and the dtypes that are rounded to. Without any change it is 0.
    """
    lost = moved = 0.0
    for name, old in before.items():
        new = tuned[name].to(old.device)
        for mine, theirs in zip(new.flatten().split(AT_A_TIME), old.flatten().split(AT_A_TIME), strict=True):
            wide = mine.double()
            lost += float((wide - mine.to(old.dtype).double()).square().sum())
            moved += float((wide - theirs.double()).square().sum())
    return lost / moved if moved else 0.0


def rounding_problem(tuned: Weights, before: Weights, ctx: Context) -> str | None:
    """Why the tuning is lost in the dtypes of `before`; if only a part of it is, that is said in the log."""
    share = lost_share(tuned, before)
    problem = f"rounding to the base's dtype loses {share:.0%} of the tuning; take a base with `dtype: float32`"
    if share > REFUSED:
        return problem
    if share > SAID:
        ctx.say(f"warning: {problem}")
    return None
