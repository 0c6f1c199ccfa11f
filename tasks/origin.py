"""Where a base is from and under which licence: what its descendants' model cards say.

Both are in its bytes, so both are in its key.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any


def origin(source: str) -> str:
    """Where a base is from, in words that hold on every machine."""
    return source if source.startswith(("builtin:", "hub:")) else Path(source).name


def licence(path: Path) -> str:
    """Of a folder by its model card, of a GGUF file by what lies beside it or its package; `unknown` for neither."""
    return _package_licence(path) if path.is_file() else _card_licence(path)


def _package_licence(path: Path) -> str:
    for file in path.parent.glob("LICENSE*"):
        if lines := file.read_text(errors="replace").strip().splitlines():
            return lines[0].strip()
    for distribution in metadata.distributions():
        if any(Path(str(file.locate())) == path for file in distribution.files or [] if file.suffix == ".gguf"):
            about: Any = distribution.metadata
            return str(about.get("License-Expression") or about.get("License") or "unknown")
    return "unknown"


def _card_licence(path: Path) -> str:
    """The `license:` line of a model card's head."""
    card = path / "README.md"
    if card.is_file():
        for line in card.read_text(errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "unknown"
