"""The stages of a run as a tree, each below the one that it goes on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from flows.tables import render, text_table

Stages = Iterable[Mapping[str, Any]]


def lineage(stages: Stages) -> str:
    """Every stage once, below its first input, with its status and key; all else that it takes is named beside it.

    Empty for a run that did not write down what its stages take.
    """
    known = {stage["name"]: stage for stage in stages}
    if not all("inputs" in stage for stage in known.values()):
        return ""
    below: dict[str | None, list[str]] = {}
    for name, stage in known.items():
        below.setdefault(_from(stage), []).append(name)
    order: list[str] = []
    tree = Tree("", hide_root=True)
    _grow(tree, None, below, order)
    branches = render(tree, width=10_000).splitlines()
    rows = [
        [branch, known[name]["status"], known[name]["key"][:8], _also(known[name])]
        for branch, name in zip(branches, order, strict=True)
    ]
    return text_table(["lineage", "status", "key", "with"], rows)


def _from(stage: Mapping[str, Any]) -> str | None:
    return next(iter(stage["inputs"].values()), None)


def _also(stage: Mapping[str, Any]) -> str:
    """All inputs but the first, the field's name where that is another than the stage's."""
    rest = list(stage["inputs"].items())[1:]
    return ", ".join(name if field == name else f"{field}: {name}" for field, name in rest)


def _grow(tree: Tree, name: str | None, below: Mapping[str | None, list[str]], order: list[str]) -> None:
    for child in below.get(name, []):
        order.append(child)
        _grow(tree.add(Text(child)), child, below, order)
