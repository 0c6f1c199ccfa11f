"""`deploy/compose.yaml` as Compose reads it: with the variables of an environment in place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
_NAME = re.compile(r"\$\{(\w+)(?::([-?+]))?")


class MissingVariableError(ValueError):
    """`${NAME:?message}`, and there is none."""


def filled_in(value: Any, environment: Mapping[str, str]) -> Any:
    """`value` with `${NAME}`, `${NAME:-default}`, `${NAME:+instead}`, `${NAME:?message}` replaced, nested or not."""
    if isinstance(value, dict):
        return {key: filled_in(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, environment) for item in value]
    if not isinstance(value, str):
        return value
    while match := _NAME.search(value):
        end = _closing(value, match.end())
        name, kind, rest = match[1], match[2], value[match.end() : end]
        if not (found := environment.get(name, "")) and kind == "?":
            raise MissingVariableError(f"{name}: {rest}")
        if kind == "+":
            found = rest if found else ""
        found = found or (rest if kind == "-" else "")
        value = value[: match.start()] + found + value[end + 1 :]
    return value


def _closing(text: str, begin: int) -> int:
    depth = 1
    for place in range(begin, len(text)):
        depth += text.startswith("${", place) - (text[place] == "}")
        if depth == 0:
            return place
    raise ValueError(f"no closing brace: {text}")


def raw() -> dict[str, Any]:
    """As it stands in the file, anchors and merges resolved."""
    return yaml.safe_load(COMPOSE.read_text())


def compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """With the environment in place; raises MissingVariableError."""
    return filled_in(raw(), environment)


def commands(script: str) -> list[list[str]]:
    """What a shell's script runs, a line each as its words."""
    lines = re.sub(r"\\\n|(?<=\|\|)\n", " ", script).splitlines()
    return [line.split() for line in lines if not line.lstrip().startswith("#")]


def names(text: str) -> set[str]:
    """The variables that a text asks for."""
    return {match[1] for match in _NAME.finditer(text)}


def example(path: Path = DEPLOY / ".env.example") -> dict[str, str]:
    """The variables of an example of an environment, and their values."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def answers() -> dict[str, str]:
    """An environment in which whoever deploys has answered everything that must be."""
    return {name: f"the-{name.lower()}" for name in names(COMPOSE.read_text()) if f"{name}:?" in COMPOSE.read_text()}
