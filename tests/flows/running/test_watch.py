"""What a run says on standard error where that is no terminal."""

from __future__ import annotations

import io
import sys

from flows.running.watch import TerminalWatcher


class Pieces(io.StringIO):
    """Keeps what it is given piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def test_a_line_is_written_whole_since_stages_that_run_together_share_the_stream(monkeypatch):
    told = Pieces()
    monkeypatch.setattr(sys, "stderr", told)
    watcher = TerminalWatcher()
    watcher.stage("dpo@beta=0.2", "starts")
    watcher.line("dpo@beta=0.4", "trains")
    assert told.pieces == ["dpo@beta=0.2: starts\n", "  dpo@beta=0.4: trains\n"]


def test_how_far_a_stage_is_is_said_now_and_then(monkeypatch):
    told = Pieces()
    monkeypatch.setattr(sys, "stderr", told)
    watcher = TerminalWatcher()
    for done in range(1, 51):
        watcher.progress("sft", done, 50, "steps", {"loss": 0.5})
    assert told.pieces == ["  sft: 1/50 steps  loss 0.5\n", "  sft: 50/50 steps  loss 0.5\n"]
