"""The gate before a promotion: conditions on an evaluation's figures, by themselves or beside the champion's. Pure.

    win_rate_low>0.5      check_rate>=champion      kl_to_reference<=champion+0.5

The same as a mapping: `{win_rate_low: ">0.5", check_rate: ">=champion"}`. Figures of two models stand side by side only
if whatever decides them was the same: see `DECIDES`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import UserError
from pipelines.problems import did_you_mean

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?"
CONDITION = re.compile(rf"\s*([\w/]+)\s*(>=|<=|>|<)\s*(?:([+-]?{NUMBER})|champion\s*([+-]\s*{NUMBER})?)\s*")

WRITTEN = ("max_new_tokens", "temperature")
ALWAYS = ("version", "held_out", "max_prompts")
DECIDES: dict[str, tuple[str, ...]] = {
    "loss": ("max_scored",),
    "perplexity": ("max_scored",),
    "preference_accuracy": ("max_scored",),
    "length_mean": WRITTEN,
    "truncated_rate": WRITTEN,
    "check_rate": WRITTEN,
    "score_mean": (*WRITTEN, "reward"),
    "win_rate": (*WRITTEN, "reward", "against"),
    "kl_to_reference": (*WRITTEN, "max_scored", "reference"),
}
"""What of an evaluation decides a figure, beside the policy and `ALWAYS`; of one that is not here, everything does."""
INTERVALS = ("check_rate", "score_mean", "win_rate")
FIGURES = (*DECIDES, "prompts", *(f"{name}_{end}" for name in INTERVALS for end in ("low", "high")))
"""All that an evaluation may measure; whether it does hangs on its data and settings."""


@dataclass(frozen=True)
class Condition:
    """`metric` (without `eval/`) stands to a number, or to the champion's figure plus a number, as `operator` says."""

    metric: str
    operator: str
    number: float
    champion: bool = False

    def __str__(self) -> str:
        if not self.champion:
            return f"{self.metric} {self.operator} {self.number:g}"
        allowance = f" {'-' if self.number < 0 else '+'} {abs(self.number):g}" if self.number else ""
        return f"{self.metric} {self.operator} champion{allowance}"


@dataclass(frozen=True)
class Measured:
    """Figures of one model by name, without `eval/`, and what they were measured on: settings and inputs' keys."""

    figures: Mapping[str, float]
    on: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What became of a condition; `wanted` is None where it asks for the champion's figure and there is no champion."""

    condition: Condition
    wanted: float | None
    got: float
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        return {"condition": str(self.condition), "metric": self.condition.metric, "wanted": self.wanted,
                "got": self.got, "passed": self.passed}  # fmt: skip


def conditions(must: Sequence[str] | Mapping[str, Any], where: str) -> list[Condition]:
    """The conditions of a gate, however they are written; raises UserError with one line for each that is none."""
    pairs = must.items() if isinstance(must, Mapping) else [("", text) for text in must]
    found, problems = [], []
    for metric, text in pairs:
        match = CONDITION.fullmatch(f"{metric}{text}")
        if match is None:
            problems.append(f"{where}: {_no_condition(metric, text)}")
            continue
        name, sign, number, allowance = match.groups()
        value = float((number or allowance or "0").replace(" ", ""))
        found.append(Condition(name.removeprefix("eval/"), sign, value, champion=number is None))
    if problems:
        raise UserError("\n".join(problems))
    return found


def _no_condition(metric: str, text: Any) -> str:
    wanted = f"wanted one of {' '.join(OPERATORS)} and then a number, `champion` or such as `champion-0.02`"
    if metric:
        return f"{metric}: {wanted}, as in {metric}: '>0.5'; got {text!r}"
    hint = "" if re.search("[<>]", text) else "; a shell takes > and < for itself unless the condition is in quotes"
    return f"wanted a metric, {wanted.removeprefix('wanted ')}, as in 'win_rate_low>0.5'; got {text!r}{hint}"


def judge(must: Sequence[Condition], mine: Measured, champion: Measured | None) -> list[Verdict]:
    """A verdict for each condition; one that asks for the champion's figure holds where there is no champion yet.

    Raises UserError for a metric that was not measured, and for figures that can't be set side by side.
    """
    problems = [problem for one in must for problem in _problems(one, mine, champion)]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return [_verdict(one, mine, champion) for one in must]


def _verdict(condition: Condition, mine: Measured, champion: Measured | None) -> Verdict:
    got = mine.figures[condition.metric]
    wanted = condition.number
    if condition.champion:
        if champion is None:
            return Verdict(condition, None, got, passed=True)
        wanted += champion.figures[condition.metric]
    return Verdict(condition, wanted, got, passed=OPERATORS[condition.operator](got, wanted))


def _problems(condition: Condition, mine: Measured, champion: Measured | None) -> list[str]:
    name = condition.metric
    if name not in mine.figures:
        return [f"{name}: no such figure in the report{did_you_mean(name, mine.figures)}; there are {_names(mine)}"]
    if not condition.champion or champion is None:
        return []
    if name not in champion.figures:
        return [
            f"{name}: the champion has no such figure, only {_names(champion)}; promote it again with a --report that "
            "has it, or leave `champion` out of the condition"
        ]
    if not (different := _differences(name, mine.on, champion.on)):
        return []
    return [
        f"{name}: can't be set beside the champion's, which was measured otherwise: {', '.join(different)}; evaluate "
        "both alike, and promote the champion again with its new --report"
    ]


def decides(metric: str) -> tuple[str, ...] | None:
    """What of an evaluation decides this figure, or the end of an interval, beside `ALWAYS`; None: everything."""
    return DECIDES.get(metric.removesuffix("_low").removesuffix("_high"))


def _differences(metric: str, mine: Mapping[str, Any], champions: Mapping[str, Any]) -> list[str]:
    own = decides(metric)
    names = sorted({*mine, *champions}) if own is None else [*ALWAYS, *own]
    return [
        f"{name} {_short(mine.get(name))} (the champion's: {_short(champions.get(name))})"
        for name in names
        if mine.get(name) != champions.get(name)
    ]


def _short(value: Any) -> str:
    if value is None:
        return "left out"
    return value[:12] if isinstance(value, str) else str(value)


def _names(measured: Measured) -> str:
    return ", ".join(sorted(measured.figures)) or "none"
