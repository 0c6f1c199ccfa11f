"""Processes by what their environment says, which children inherit: whoever is left over of a run is found by it."""

from __future__ import annotations

import time

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """All that live and have this variable."""
    return [process for process in psutil.process_iter() if _variable(process, name) == value]


def left_over(name: str, value: str, patience_s: float = 10.0) -> int:
    """How many of them are still there, now that none should be."""
    deadline = time.monotonic() + patience_s
    while (left := len(marked(name, value))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(name)
    except psutil.Error:
        return None
