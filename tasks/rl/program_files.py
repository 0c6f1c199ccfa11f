"""The files that a reward function is made of: its own, and those beside it that are imported, however far away."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

OURS = Path(__file__).resolve().parents[2]
LAYERS = ("artifacts", "tasks", "flows")
"""Packages of ours, which have versions of their own."""
INSTALLED = ("site-packages", "dist-packages")


def import_root(path: Path) -> Path:
    """The folder from which a file's imports are looked for: its own, or the one that its package is in."""
    folder = path.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def imported_files(path: Path) -> list[Path]:
    """What the Python file `path` imports of the package that it is in, or from its folder, and what that imports in
    turn; itself not among them."""
    root, found, todo = import_root(path), {path}, [path]
    while todo:
        for file in _imports(todo.pop(), root):
            if file not in found and _is_local(file, path, root):
                found.add(file)
                todo.append(file)
    return sorted(found - {path})


def _is_local(file: Path, path: Path, root: Path) -> bool:
    if any(file.is_relative_to(OURS / layer) for layer in LAYERS):
        return False
    package = path.relative_to(root).parts[:-1]
    return file.is_relative_to(root / package[0]) if package else root.name not in INSTALLED


def _imports(path: Path, root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_text())
    except (OSError, ValueError, SyntaxError):  # then it can't be imported, which is said where that is tried
        return
    package = path.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(root, tuple(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, *(node.module.split(".") if node.module else ()))
            for names in ((), *((alias.name,) for alias in node.names)):
                yield from _files(root, (*module, *names))


def _files(root: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """A module's file, and those of the packages that it is in."""
    for end in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                yield file
