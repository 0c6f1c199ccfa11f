"""What is made of a trainer's lines, and of one that starts just when all are asked to end."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import StageError
from flows.running import launch
from flows.running.watch import Watcher
from tasks.context import EVENT, Execution
from tasks.job import Job

ONE = '{"done": 1, "total": 2, "unit": "steps", "figures": {}}'


class Hearing(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.lines, self.done = list[str](), list[int]()

    def line(self, label: str, text: str) -> None:
        self.lines.append(text)

    def progress(self, label: str, done: int, total: int, unit: str, figures: Any) -> None:
        self.done.append(done)


@pytest.fixture(autouse=True)
def nothing_ends() -> Iterator[None]:
    yield
    launch.ENDING.clear()


@pytest.mark.parametrize(
    ("line", "done", "text"),
    [
        (EVENT + ONE, [1], []), ("loading", [], ["loading"]), ("loading" + EVENT + ONE, [1], ["loading"]),
        (EVENT + ONE + "loading", [], [ONE + "loading"]), (EVENT + ONE + EVENT + ONE, [], [ONE + EVENT + ONE]),
        (EVENT + "3", [], ["3"]), (EVENT + "{}", [], ["{}"]), (EVENT, [], []), ("", [], []),
    ],
)  # fmt: skip
def test_a_line_that_is_text_and_event_at_once_ends_no_run(line: str, done: list[int], text: list[str]) -> None:
    watcher, log = Hearing(), io.StringIO()
    launch._pump(line, "sft", watcher, log)
    assert (watcher.done, watcher.lines) == (done, text)
    assert log.getvalue().strip() == "".join(text)


def test_a_trainer_that_starts_just_when_all_are_asked_to_end_is_asked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def slow(words: list[str], **how: Any) -> Any:
        launch.end_trainers(5)  # which finds nobody there yet
        return start([sys.executable, "-c", "import time; time.sleep(20)"], **how)

    monkeypatch.setattr(subprocess, "Popen", slow)
    job = Job(uses="base", key="k" * 8, settings={}, inputs={}, seed=0, execution=Execution(monitor_interval=0),
              draft=tmp_path / "draft")  # fmt: skip
    with pytest.raises(StageError, match="was ended by SIGTERM"):
        launch.launch(job, "sft", Hearing(), (), {})
    assert not launch.RUNNING
