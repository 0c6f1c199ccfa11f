"""Times that the environment may set."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from artifacts.errors import UserError


def seconds(name: str, default: float, environment: Mapping[str, str] = os.environ) -> float:
    """A variable's number of seconds; raises UserError for what is none."""
    said = environment.get(name) or str(default)
    try:
        found = float(said)
    except ValueError:
        found = -1.0
    if not 0 <= found <= threading.TIMEOUT_MAX:
        raise UserError(f"{name}: wanted a number of seconds, 0 or more, got {said!r}")
    return found
