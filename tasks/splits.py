"""A split of a data set as training reads it: one row a line, with token ids, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts.fingerprint import canonical


def write_split(rows: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Write the rows; gives counts and lengths in tokens."""
    path.write_text("".join(canonical(row) + "\n" for row in rows))
    return figures(rows)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and lengths in tokens of the rows as they will be trained on."""
    prompts = [len(row["prompt_ids"]) for row in rows]
    completions = [len(row[name]) for row in rows for name in row if name.endswith("_ids") and name != "prompt_ids"]
    repeated = sum(prompts) * (2 if rows and "chosen_ids" in rows[0] else 1)
    total = repeated + sum(completions)
    return {
        "rows": len(rows), "tokens": total, "supervised_share": sum(completions) / total if total else 0.0,
        "prompt_tokens": _spread(prompts), "completion_tokens": _spread(completions),
    }  # fmt: skip


def _spread(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    ordered = sorted(lengths)
    return {
        "mean": sum(ordered) / len(ordered), "median": float(ordered[len(ordered) // 2]),
        "p95": float(ordered[int(0.95 * (len(ordered) - 1))]), "max": float(ordered[-1]),
    }  # fmt: skip
