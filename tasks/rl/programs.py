"""Rewards that are programs: the rows' own checks, or a Python function that the recipe names.

A function is named `module:function` or `path/to/file.py:function`, looked for from the recipe's folder and from the
working directory, then among what is installed. It is called as

    def brevity(prompts: list[str], completions: list[str]) -> list[float]

with one score a completion expected back; if it has a parameter `rows`, it gets the data's rows there too. Before
training it is tried once on two rows, so that a mistake costs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifacts.errors import DataError, StageError, UserError, ran_out_of_memory
from tasks.checks import passes
from tasks.rl.program_files import import_root
from tasks.sources import places

CHECKS = "checks"
Scorer = Callable[[list[dict[str, Any]], list[str]], list[float]]
"""Rows and completions to scores."""


def is_program(name: str) -> bool:
    """Whether a reward's name stands for a program and not for a stage."""
    return name == CHECKS or ":" in name


def locate_program(name: str, folders: Sequence[Path]) -> str:
    """`name` with the absolute path of its file; raises UserError unless the file defines the function."""
    if name == CHECKS:
        return name
    module, _, function = name.rpartition(":")
    path = _file_of(module, folders)
    if path is None:
        looked = ", ".join(map(str, dict.fromkeys(folders)))
        raise UserError(
            f"reward: no module {module!r} is in {looked} or installed; give module:function or file.py:function"
        )
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"reward: {path} can't be read as Python: {error}") from error
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    if function not in defined:
        raise UserError(f"reward: {path} defines no {function!r}; it has: {', '.join(defined) or 'no function'}")
    return f"{path}:{function}"


def file_of(module: str) -> str:
    """The path of a module's file, looked for from the folders before it is looked for among what is installed."""
    return module if module.endswith(".py") else module.replace(".", "/") + ".py"


def _file_of(module: str, folders: Sequence[Path]) -> Path | None:
    for path in places(file_of(module), folders):
        with suppress(OSError, ValueError):  # a name that no file can have
            if path.is_file():
                return path.resolve()
    if not module or module.endswith(".py"):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    found = Path(spec.origin) if spec is not None and spec.origin else None
    return found.resolve() if found is not None and found.suffix == ".py" else None


def program_names(located: Iterable[str]) -> dict[str, str]:
    """For located programs their short names, with no path of this machine: `rewards:brevity`.

    Where two files are called alike, the later one in the recipe gets a number: `rewards:brevity-2`.
    """
    names: dict[str, str] = {}
    for one in located:
        path, _, function = one.rpartition(":")
        name = f"{Path(path).stem}:{function}" if path else one
        alike = sum(other == name or other.startswith(f"{name}-") for other in names.values())
        names[one] = f"{name}-{alike + 1}" if alike else name
    return names


def load_program(located: str) -> Scorer:
    """The program behind a located name; raises UserError if its module can't be imported."""
    if located == CHECKS:
        return lambda rows, completions: [
            float(passes(row["check"], text)) for row, text in zip(rows, completions, strict=True)
        ]
    path, _, name = located.rpartition(":")
    try:
        function = getattr(_imported(Path(path)), name)
    except Exception as error:
        raise UserError(f"reward: {path} can't be imported: {type(error).__name__}: {error}") from error
    takes_rows = "rows" in inspect.signature(function).parameters

    def score(rows: list[dict[str, Any]], completions: list[str]) -> list[float]:
        prompts = [row["prompt"] for row in rows]
        given = function(prompts, completions, rows=rows) if takes_rows else function(prompts, completions)
        return list(given)

    return score


def _imported(path: Path) -> Any:
    """The module in a file: by its dotted name if it lies in a package, so that its own imports work.

    A file by itself gets a name of ours, so that one called like a library's module takes nobody's place; so does
    one in a package whose name someone else has, as in a copy of our own `pipelines/`.
    """
    folder = import_root(path)
    parts = path.relative_to(folder).with_suffix("").parts
    sys.path.append(str(folder))
    if len(parts) > 1 and _is_package_at(parts[0], folder / parts[0]):
        return importlib.import_module(".".join(parts))
    name = f"align_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_package_at(name: str, folder: Path) -> bool:
    """Whether a top-level package of this name is the one in `folder`."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations or [] if spec is not None else []
    return any(Path(place).resolve() == folder.resolve() for place in places)


class Programs:
    """The programs of a stage with their weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)
        self.names = program_names(weights)
        self._scorers = {located: load_program(located) for located in weights}

    def check(self, rows: list[dict[str, Any]]) -> None:
        """Raise before anything is trained what would go wrong on the first rollout; names the row."""
        if CHECKS in self.weights:
            without = [row["row"] for row in rows if "check" not in row]
            if without:
                shown = ", ".join(map(str, without[:5]))
                raise DataError(f"reward: checks needs a `check` in every row; {len(without)} have none: {shown}")
        few = rows[:2]
        try:
            self(few, ["A first try."] * len(few))
        except StageError as error:
            raise UserError(str(error)) from error

    def __call__(self, rows: list[dict[str, Any]], completions: list[str]) -> dict[str, list[float]]:
        """The unweighted scores by each program's short name.

        Raises StageError, naming the prompt, if a program raises or gives anything but one finite number a row.
        """
        return {name: self._scores(located, rows, completions) for located, name in self.names.items()}

    def weighted(self, scores: Mapping[str, list[float]], count: int) -> list[float]:
        """The weighted sum of what `__call__` gave, for `count` rows."""
        weights = {self.names[located]: weight for located, weight in self.weights.items()}
        return [sum(weights[name] * values[i] for name, values in scores.items()) for i in range(count)]

    def _scores(self, located: str, rows: list[dict[str, Any]], completions: list[str]) -> list[float]:
        name, scorer = self.names[located], self._scorers[located]
        try:
            given = scorer(rows, completions)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise StageError(self._blamed(name, scorer, rows, completions, error)) from error
        if len(given) != len(rows):
            raise StageError(f"reward {name}: wanted {len(rows)} scores, one a completion, got {len(given)}")
        for row, value in zip(rows, given, strict=True):
            if isinstance(value, str) or not _is_finite(value):
                raise StageError(
                    f"reward {name}: wanted a finite number for row {row['row']}, got {value!r}: {_shown(row)}"
                )
        return [float(value) for value in given]

    def _blamed(self, name: str, scorer: Scorer, rows: Any, completions: Any, error: Exception) -> str:
        """The message for a program that raised: tries rows one at a time to name the one that did it."""
        for row, completion in zip(rows, completions, strict=True):
            try:
                scorer([row], [completion])
            except Exception as again:
                return f"reward {name} raised {type(again).__name__}: {again} on row {row['row']}: {_shown(row)}"
        return f"reward {name} raised {type(error).__name__}: {error}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False


def _shown(row: Mapping[str, Any]) -> str:
    return repr(str(row["prompt"])[:120])
