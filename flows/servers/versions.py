"""Versions of libraries, and of servers that answer to them: those that `pyproject.toml` names go together."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def requirements() -> list[Requirement]:
    """The libraries that the project wants, with their ranges."""
    from packaging.requirements import Requirement

    return [Requirement(line) for line in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]


def does_not_fit(package: str, version: str) -> str | None:
    """That a version is out of the range of a library, as `wanted <3.10,>=3.8.8, got 3.1.0`; None if it is within."""
    wanted = next(one.specifier for one in requirements() if one.name == package)
    return None if wanted.contains(version, prereleases=True) else f"wanted {wanted}, got {version}"
