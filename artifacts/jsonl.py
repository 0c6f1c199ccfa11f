"""Files of one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Its whole lines; one that is still being written is left out.

    Cut at line feeds alone: `splitlines` would cut inside a text that holds U+2028 or another of Unicode's line ends.
    """
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]
