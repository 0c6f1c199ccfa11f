"""How large and how deep a recipe may be, and what is to change in it: far beyond any that is meant.

What an alias of YAML stands for counts wherever it stands: a dozen lines can write out thousands of millions of values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import yaml

LARGEST = 1 << 20
"""Characters of a recipe's text, and of all names and values in it, aliases written out."""
DEEPEST = 32
"""Lists and mappings within each other."""
LONGEST_NAME = 1000
LONGEST_NUMBER = 400
"""Characters; YAML takes `1:1:1:...` for a number in base 60, and works on a long one for minutes."""
MOST_STAGES = 256
"""As they stand in a recipe."""
MOST_COPIES = 4096
"""With all branches of a sweep."""


class _TooDeepError(Exception):
    """Ends measuring, of what contains itself too."""


def size_problem(value: Any) -> str | None:
    """Why a value, or a node of YAML, is too much to be looked at, or None."""
    try:
        size, _ = _extent(value, 0, {})
    except _TooDeepError:
        return f"wanted at most {DEEPEST} lists and mappings within each other, got more; an alias may stand in itself"
    if size > LARGEST:
        shown = f"{size:,}" if size < LARGEST**3 else "far more"
        return f"wanted at most {LARGEST:,} characters of names and values, aliases written out, got {shown}"
    return None


def names_problem(names: Iterable[Any]) -> str | None:
    """Why one of the names `stage.field.within` is too much, or None."""
    for name in map(str, names):
        if len(name) > LONGEST_NAME or name.count(".") > DEEPEST:
            return f"wanted names of at most {LONGEST_NAME} characters and {DEEPEST} dots, got {name[:40]!r}..."
    return None


def _extent(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Size and height of a value at some depth; what stands in several places is gone through once."""
    parts = _parts(value)
    if parts is None:
        return 1 + _length(value), 0
    if depth >= DEEPEST:
        raise _TooDeepError
    if id(value) not in known:
        found = [_extent(part, depth + 1, known) for part in parts]
        known[id(value)] = 1 + sum(size for size, _ in found), 1 + max((height for _, height in found), default=0)
    size, height = known[id(value)]
    if depth + height > DEEPEST:
        raise _TooDeepError
    return size, height


def _parts(value: Any) -> Collection[Any] | None:
    """What a list, a mapping or a node consists of; None for all else."""
    if isinstance(value, yaml.MappingNode):
        return [part for pair in value.value for part in pair]
    if isinstance(value, yaml.SequenceNode):
        return list(value.value)
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    return None


def _length(value: Any) -> int:
    if isinstance(value, yaml.ScalarNode):
        return len(value.value)
    if isinstance(value, int):
        return value.bit_length() // 3
    return len(value) if isinstance(value, str | bytes) else 0
