"""What a base is and under which licence: what its descendants' model cards say.

Told by the weights themselves and never by a path: the same weights have one key and one digest wherever they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

UNKNOWN = "unknown"


def origin(source: str, config: dict[str, Any], parameters: int) -> str:
    """A hub id, `builtin:NAME`, or what a GGUF file calls itself; of other files architecture and size."""
    if source.startswith(("builtin:", "hub:")):
        return source
    return str(config.get("name") or f"a {config.get('model_type', 'model')} of {parameters:,} parameters")


def card_licence(folder: Path) -> str:
    """The `license:` line of a model card's head."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return UNKNOWN
