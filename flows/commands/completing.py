"""What the tab key offers: recipes, stages, fields and runs beside what argparse knows of; read in a moment."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from argcomplete import autocomplete
from argcomplete.completers import BaseCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from flows.home import align_home

MOST_RUNS = 50


def script(shell: str) -> str:
    """What a shell is to evaluate."""
    return str(shellcode(["align"], shell=shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks, and end this process."""
    autocomplete(parser, always_complete_options=False, default_completer=Offer())


class Offer(BaseCompleter):
    """What may stand for an argument, by what `--help` calls it."""

    def __call__(
        self, *, prefix: str, action: argparse.Action, parser: argparse.ArgumentParser, parsed_args: argparse.Namespace
    ) -> Iterable[str]:
        wanted = str(action.metavar)
        if wanted == "RECIPE":
            return FilesCompleter(("yaml", "yml"))(prefix)
        if wanted.startswith("FILE"):
            return FilesCompleter()(prefix)
        if wanted == "NAME=VALUE":
            return _executions()
        if wanted in ("STAGE", "stage.field=value") and getattr(parsed_args, "recipe", None) is not None:
            stages = _stages_of(parsed_args.recipe)
            return stages if wanted == "STAGE" else _fields(stages, prefix)
        if wanted == "STAGE" and hasattr(parsed_args, "run"):
            return _stages_in(parsed_args.run)
        if wanted in ("RUN", "RUN|STAGE", "STAGE", "STAGE|FOLDER"):
            return _runs(prefix, whole=wanted.startswith("RUN"), stages=wanted != "RUN")
        return []


def _runs(prefix: str, *, whole: bool, stages: bool) -> list[str]:
    """Runs, newest first; after `RUN:` its stages."""
    run, colon, _ = prefix.partition(":")
    if colon:
        return [f"{run}:{name}" for name in _stages_in(run)] if stages else []
    runs = ["last", *(path.stem for path in _records())]
    return runs if whole else [f"{run}:" for run in runs]


def _records() -> list[Path]:
    paths = (align_home() / "runs").glob("*.json")
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[:MOST_RUNS]


def _stages_in(run: str) -> list[str]:
    for path in _records():
        if run == "last" or path.stem.startswith(run):
            with suppress(OSError, ValueError, KeyError):  # being removed; nothing is offered then
                return [stage["name"] for stage in json.loads(path.read_text())["stages"]]
    return []


def _stages_of(recipe: Path) -> Mapping[str, Any]:
    """What a recipe says of its stages; nothing of one that can't be read."""
    try:
        stages = yaml.load(Path(recipe).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return stages if isinstance(stages, dict) else {}


def _fields(stages: Mapping[str, Any], prefix: str) -> list[str]:
    """Stages, and the fields of the one that is named, or is the only one that may be: no space is to follow `dpo.`."""
    begun = [name for name in stages if f"{name}.".startswith(prefix) or prefix.startswith(f"{name}.")]
    if len(begun) != 1:
        return [f"{name}." for name in begun]
    from tasks.registry import STAGES, stage_class

    (stage,) = begun
    uses = stages[stage].get("uses")
    return [f"{stage}.{field}=" for field in stage_class(uses).model_fields] if uses in STAGES else []


def _executions() -> list[str]:
    from tasks.context import Execution

    return [f"{name}=" for name in Execution.model_fields]
