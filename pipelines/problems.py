"""Everything that is wrong with a recipe, said at once: where, what was wanted, what was got, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from artifacts.errors import RecipeError

Problem = tuple[str, str]
"""Where, and what."""


class Problems:
    """A list of problems that becomes one error."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[Problem] = []

    def add(self, place: str, message: str) -> None:
        self.found.append((place, message))

    def extend(self, problems: Iterable[Problem]) -> None:
        self.found.extend(problems)

    def raise_if_any(self) -> None:
        """Raise RecipeError with one line a problem."""
        if self.found:
            raise RecipeError("\n".join(f"{self.where}: {place}: {message}" for place, message in self.found))


def did_you_mean(word: Any, options: Iterable[str]) -> str:
    """`; did you mean 'beta'?`, or nothing; `lr` is understood as the initials of `learning_rate`."""
    names = list(options)
    close = [name for name in names if str(word) == "".join(part[:1] for part in name.split("_"))]
    close += [name for name in names if sorted(name) == sorted(str(word))]  # two letters that changed places
    close += get_close_matches(str(word), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def field_problems(model: type[BaseModel], values: Mapping[str, Any], place: str) -> list[Problem]:
    """What pydantic finds wrong with `values`, in the recipe's terms."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [_renamed(model, found, values, place) or _problem(model, found, place) for found in _distinct(error)]
    return []


def _renamed(model: type[BaseModel], found: Any, values: Mapping[str, Any], place: str) -> Problem | None:
    """For a field that other trainers call otherwise: its name here, with the value as it would stand here."""
    name = found["loc"][0] if found["loc"] else ""
    known = getattr(model, "renamed", {})
    if found["type"] != "extra_forbidden" or name not in known:
        return None
    return f"{place}.{name}", f"no such field; write {known[name](values[name], values)}"


def _distinct(error: ValidationError) -> list[Any]:
    """A union reports one error for each of its members under the same field; they become one."""
    seen: dict[Any, Any] = {}
    for found in error.errors(include_url=False, include_context=False):
        loc = tuple(part for part in found["loc"] if not _is_branch(part))
        if loc in seen and found["msg"] not in seen[loc]["msg"]:
            seen[loc]["msg"] += f", or {_lowered(found['msg'])}"
        seen.setdefault(loc, {**found, "loc": loc})
    return list(seen.values())


def _lowered(message: str) -> str:
    return message[0].lower() + message[1:]


def _is_branch(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool", "constrained-str", "LoRA"))


def _problem(model: type[BaseModel], found: Any, place: str) -> Problem:
    loc = found["loc"]
    where = ".".join([place, *map(str, loc)] if place else list(map(str, loc)))
    if found["type"] == "extra_forbidden":
        names = _fields_at(model, loc[:-1])
        hint = did_you_mean(loc[-1], names) or f"; the fields here are {', '.join(names)}"
        return where, "no such field" + hint
    if found["type"] == "missing":
        return where, "missing, and it has no default"
    if found["type"] == "value_error":
        return where, found["msg"].removeprefix("Value error, ")
    return where, f"{_lowered(found['msg'])}, got {found['input']!r:.80}"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The field names of the (nested) model at `loc`."""
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = getattr(annotation, "__args__", (annotation,))
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
