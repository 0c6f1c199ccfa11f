"""A flow whose parameters are the fields of a form, and the recipe that a form comes to, as a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import flows.before_prefect  # noqa: F401

# isort: split
from prefect import Flow, flow

from artifacts.errors import UserError
from artifacts.fingerprint import digest
from flows.deployments.form_fields import Shown
from flows.home import align_home
from flows.running.outlasting import outlast_prefect
from flows.running.stages import Answer, answer

outlast_prefect()  # before Prefect's engine, which imports the flow, begins it


def form_flow(
    name: str, text: str, fields: Sequence[Shown], run: Callable[[dict[str, Any]], Answer], module: str
) -> Flow[Any, Any]:
    """A flow with these parameters, that calls `run` with all of them; `module` is where Prefect will look for it."""

    def body(**given: Any) -> Answer:
        return answer(lambda: run({field.name: field.default for field in fields} | given))

    body.__name__ = body.__qualname__ = name.replace("-", "_")
    body.__doc__, body.__module__ = text, module
    parameters = [field.parameter() for field in fields]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Prefect's form follows it
    return flow(name=name, description=text, validate_parameters=True, persist_result=False)(body)


def write_recipe(name: str, recipe: Mapping[str, Any], remark: str) -> Path:
    """Under `$ALIGN_HOME/recipes`, named by its content, so that it can be run again and changed by hand."""
    path = align_home() / "recipes" / f"{name}-{digest(recipe)[:12]}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {remark}\n{yaml.safe_dump(dict(recipe), sort_keys=False, width=120)}")
    except OSError as error:
        raise UserError(f"{path}: the form's recipe can't be written ({error.strerror}); see to that folder") from error
    return path
