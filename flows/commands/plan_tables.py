"""The tables of `align plan`, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.tables import duration, text_table

GIB = 2**30
SHOWN = GIB // 200
"""Less would be 0.00."""


def plan_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """One line a stage: cached or not, why, and what it will take."""
    rows = [
        [
            stage["name"], "cached" if stage["cached"] else "run", _count(stage["parameters"]), _share(stage),
            _at_most(stage["steps_is_bound"], _count(stage["steps"])),
            _at_most(stage["memory_is_bound"], _bytes(stage["memory_bytes"])), stage["reason"],
        ]
        for stage in stages
    ]  # fmt: skip
    numbers = ["parameters", "trainable", "steps", "memory"]
    return text_table(["stage", "", *numbers, "why"], rows, numbers)


def memory_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """One line for each stage that is estimated: tokens, disk and time, and memory by part in GiB."""
    known = [stage for stage in stages if stage["memory"]]
    if not known:
        return "nothing is known of memory yet: it follows from the base, which has not been made"
    parts = [name for name in known[0]["memory"] if any(stage["memory"][name] >= SHOWN for stage in known)]
    rows = [
        [
            stage["name"], _tokens(stage), f"{stage['disk_bytes'] / GIB:.2f}", _time(stage["seconds_estimate"]),
            *(f"{stage['memory'][part] / GIB:.2f}" if stage["memory"][part] >= SHOWN else "" for part in parts),
        ]
        for stage in known
    ]  # fmt: skip
    headings = ["stage", "tokens", "disk", "time", *(SHORT.get(part, part) for part in parts)]
    return text_table(headings, rows, headings[1:], width=160)


SHORT = {
    "gradients": "grads", "optimizer": "optim", "activations": "activ", "kv_cache": "cache", "reference": "ref",
    "libraries": "libs", "allocator": "alloc",
}  # fmt: skip
"""Headings that would be wider than what stands below them."""


def fit_lines(stages: Sequence[Mapping[str, Any]], device: str) -> list[str]:
    """What fits the device, and what would make the others fit."""
    ahead = [stage for stage in stages if not stage["cached"]]
    lines = [f"{stage['name']} does not fit {device}{_remedy(stage)}" for stage in ahead if stage["fits"] is False]
    unsure = [stage["name"] for stage in ahead if stage["fits"] is None and stage["memory_is_bound"]]
    if not lines and not unsure and any(stage["fits"] for stage in ahead):
        return [f"{device}: fits"]
    if unsure:
        lines.append(
            f"whether {', '.join(unsure)} fit{'s' * (len(unsure) == 1)} {device}, can be said once the data stages "
            "have run: rows as long as `max_length` lets them be would not"
        )
    return lines


def _remedy(stage: Mapping[str, Any]) -> str:
    rows = stage["largest_micro_batch"]
    if rows is None:
        return ""
    if rows == 0:
        return " with any micro_batch: shorten rows, quantise the base, or --exec checkpointing=true"
    return f"; the largest micro_batch that does: {rows} (--exec micro_batch={rows})"


def _tokens(stage: Mapping[str, Any]) -> str:
    if stage["tokens"] is None:
        return "-"
    return _at_most(stage["tokens_is_bound"], _count(stage["tokens"]))


def _at_most(is_bound: bool, figure: str) -> str:
    return f"<= {figure}" if is_bound and figure else figure


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _share(stage: Mapping[str, Any]) -> str:
    if not stage["trainable"]:
        return ""
    return f"{stage['trainable']:,} ({stage['trainable'] / stage['parameters']:.2%})"


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.1f} GiB"
