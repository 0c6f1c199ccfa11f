"""What a stage tells whoever watches."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tasks.context import EVENT, Progress


def test_an_event_is_one_write_so_that_no_text_gets_between_it_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Unbuffered(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Unbuffered())
    Progress(events=True)(1, 2, "steps", loss=0.5)
    (line,) = written
    assert line.startswith(EVENT) and line.endswith("\n")
    assert json.loads(line.removeprefix(EVENT)) == {"done": 1, "total": 2, "unit": "steps", "figures": {"loss": 0.5}}
