"""Which code makes a result: a digest of a module and of all modules of its package that it imports.

Over what the interpreter sees, so that a comment, a docstring or a line break is no change.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from artifacts.fingerprint import digest


def code_digest(module: Path, root: Path, *, without: Path | None = None) -> str:
    """Of the file `module`, and of every file that it imports from the package folder `root`, however far away.

    What lies in the folder `without` computes nothing of a result, and is left out.
    """
    found: dict[str, str] = {}
    todo = [module.resolve()]
    while todo:
        path = todo.pop()
        if without is not None and path.is_relative_to(without.resolve()):
            continue
        name = path.relative_to(root.resolve().parent).as_posix()
        if name not in found:
            found[name], imported = _parsed(path, root.resolve())
            todo += imported
    return digest(found)


@lru_cache
def _parsed(path: Path, root: Path) -> tuple[str, list[Path]]:
    """A file's code as text without its words, and the files below `root` that it imports."""
    tree = ast.parse(path.read_text())
    imported = [found for name in _imports(tree) if (found := _file_of(name, root)) is not None]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return ast.dump(tree), imported


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names, of modules or of things in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(name: str, root: Path) -> Path | None:
    parts = name.split(".")
    if parts[0] != root.name:
        return None
    path = root.joinpath(*parts[1:]).with_suffix(".py")
    return path if path.is_file() else None
