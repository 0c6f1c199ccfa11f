"""Defaults are not in a key, so a default that changes must come with a new version."""

from __future__ import annotations

import ast
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from artifacts.fingerprint import digest
from artifacts.kinds import Artifact
from tasks.context import Execution
from tasks.registry import STAGES, stage_class
from tests.conftest import ROOT

GOLDEN = Path(__file__).parent / "defaults.json"


def defaults(uses: str) -> dict[str, Any]:
    cls = stage_class(uses)
    return {
        name: _plain(field.default)
        for name, field in cls.model_fields.items()
        if not field.is_required() and name not in cls.inputs()
    }


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


@pytest.mark.parametrize("uses", STAGES)
def test_the_defaults_of_a_version_stay_as_they_are(uses: str) -> None:
    golden, now = json.loads(GOLDEN.read_text()), {"version": stage_class(uses).version, "defaults": defaults(uses)}
    entry = json.dumps({uses: {"version": now["version"], "defaults": digest(now["defaults"])}})
    assert uses in golden, f"{uses} is new: put {entry} into {GOLDEN.name}"
    pinned = golden[uses]
    if pinned["version"] == now["version"]:
        assert digest(now["defaults"]) == pinned["defaults"], (
            f"a default of {uses} has changed, or a field came or went. A default is not a part of the key, so results "
            f"made with the old one would pass for results of the new: bump {stage_class(uses).__name__}.version "
            "(not for a new field whose default does what was done before), "
            f"then put {entry} into tests/pipelines/{GOLDEN.name}"
        )
    else:
        assert now["version"] > pinned["version"], f"the version of {uses} went back"
        pytest.fail(f"{uses} has a new version: put {entry} into tests/pipelines/{GOLDEN.name}")


def test_what_is_pinned_is_registered() -> None:
    assert set(json.loads(GOLDEN.read_text())) == set(STAGES)


def accepted(model: type[BaseModel]) -> set[str]:
    """The names of a model's fields and of those in it; inputs among them."""
    found = set(model.model_fields)
    for field in model.model_fields.values():
        options = (
            typing.get_args(field.annotation)
            if typing.get_origin(field.annotation) in (typing.Union, types.UnionType)
            else (field.annotation,)
        )
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel) and not issubclass(option, Artifact):
                found |= accepted(option)
    return found


def read_somewhere() -> set[str]:
    """Every name that is read as an attribute in tasks/ or flows/."""
    return {
        node.attr
        for layer in ("tasks", "flows")
        for path in (ROOT / layer).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("model", [*map(stage_class, STAGES), Execution], ids=lambda model: model.__name__)
def test_every_field_that_is_accepted_is_read(model: type[BaseModel]) -> None:
    assert accepted(model) - read_somewhere() == set()


@pytest.mark.parametrize("model", [*map(stage_class, STAGES), Execution], ids=lambda model: model.__name__)
def test_every_field_that_is_no_input_says_what_it_is(model: type[BaseModel]) -> None:
    inputs = model.inputs() if hasattr(model, "inputs") else {}
    assert [name for name, field in model.model_fields.items() if not field.description and name not in inputs] == []
