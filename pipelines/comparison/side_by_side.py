"""What policies wrote for the same prompts, and how it was judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.comparison.markdown_text import inert
from pipelines.comparison.policies import Compared

PROMPTS = 24


class Written(NamedTuple):
    """One policy's completion of a prompt."""

    policy: str
    text: str
    passed: bool | None
    score: float | None
    truncated: bool


def written(policies: Sequence[Compared], prompts: int = PROMPTS) -> Iterator[tuple[str, list[Written]]]:
    """The first held-out prompts, each with the completions that there are of it."""
    by_policy = [(policy.name, policy.outcomes) for policy in policies]
    for first in policies[0].completions[:prompts]:
        found = [(name, results.get(first["row"])) for name, results in by_policy]
        yield first["prompt"], [_written(name, result) for name, result in found if result is not None]


def _written(name: str, result: Mapping[str, Any]) -> Written:
    return Written(name, result["completion"], result.get("passed"), result.get("score"), bool(result.get("truncated")))


def side_by_side(policies: Sequence[Compared], prompts: int = PROMPTS) -> str:
    """A Markdown table: a row for each prompt, a column for each policy."""
    names = [policy.name for policy in policies]
    lines = [f"| prompt | {' | '.join(map(inert, names))} |", "|---" * (len(names) + 1) + "|"]
    for prompt, completions in written(policies, prompts):
        cells = {one.policy: f"{verdict(one)}{inert(one.text)}" for one in completions}
        lines.append(f"| {inert(prompt)} | {' | '.join(cells.get(name, '–') for name in names)} |")
    return "\n".join(lines)


def verdict(one: Written) -> str:
    """The check's outcome as a mark, and the score, before a completion."""
    mark = {True: "✓ ", False: "✗ ", None: ""}[one.passed]
    return mark + (f"({one.score:.2f}) " if one.score is not None else "")
