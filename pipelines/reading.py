"""YAML as a recipe may hold it: plain values, no name twice, and no more of it than can be meant."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from artifacts.errors import RecipeError
from pipelines.limits import DEEPEST, LARGEST, LONGEST_NUMBER, size_problem

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, since the first of them would vanish without a word."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} lists and mappings are within each other",
                                       problem_mark=mark)  # fmt: skip
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem=f"a number of {len(node.value):,} characters", problem_mark=mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem=f"{key!r} can't be a name", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """The value that a text of YAML stands for; raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if problem := size_problem(node):  # before anything is made of it: `<<` writes aliases out
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return loader.construct_document(node)
    except (
        ValueError,
        LookupError,
        AttributeError,
    ) as error:  # a tag that does not fit, such as a 13th month
        raise yaml.YAMLError(f"a value can't be what it looks like: {error}") from error
    finally:
        loader.dispose()


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a file; raises RecipeError."""
    try:
        with path.open("rb") as file:
            given = file.read(LARGEST + 1)
        raw = parse(given.decode()) if len(given) <= LARGEST else None
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `ls pipelines/*.yaml` shows those that ship") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can't be read as text ({error})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {yaml_problem(error)}") from error
    if len(given) > LARGEST:
        raise RecipeError(f"{path}: wanted a recipe of at most {LARGEST:,} bytes, got more")
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: wanted a mapping with `stages:`, got {type(raw).__name__}")
    return raw


def yaml_problem(error: yaml.YAMLError) -> str:
    """One line: where, and what."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}not valid YAML: {problem or ' '.join(str(error).split())}"
