"""`NAME=VALUE` as it stands on a command line, the values read as YAML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from artifacts.errors import RecipeError
from pipelines.reading import parse, yaml_problem

OPEN, CLOSE = "([{<", ")]}>"
"""`<|end|>` is a token, and no three values."""


def parse_assignments(words: Sequence[str], what: str) -> dict[str, Any]:
    """`["dpo.beta=0.2"]` as a mapping, the values read as YAML."""
    return {name: _value(value, f"{what} {name}") for name, value in _assignments(words, what)}


def parse_overrides(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Fields with one value, and fields with several (`dpo.beta=0.1|0.3`), which a sweep goes through."""
    parts = {name: _values_in(value) for name, value in _assignments(words, "override")}
    values = {name: [_value(one, f"override {name}") for one in given] for name, given in parts.items()}
    return (
        {name: found[0] for name, found in values.items() if len(found) == 1},
        {name: found for name, found in values.items() if len(found) > 1},
    )


def _assignments(words: Sequence[str], what: str) -> Iterator[tuple[str, str]]:
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise RecipeError(f"{what}: wanted NAME=VALUE, got {word!r}")
        yield name, value


def _value(text: str, where: str) -> Any:
    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: {text!r} is not a YAML value ({yaml_problem(error)})") from error


def _values_in(text: str) -> list[str]:
    """`a|b` as its parts; a bar within brackets or quotes divides nothing."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth = max(0, depth + (letter in OPEN) - (letter in CLOSE))
        if letter == "|" and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
