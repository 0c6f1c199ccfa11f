"""Who watches a run: the log alone, or progress bars on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.colours import coloured_status
from flows.running.run_log import RunLog

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Watcher:
    """Hears what happens and keeps it in the run's log; this one says nothing but to the logger that it is given."""

    def __init__(self) -> None:
        self.logger: Any = logging.getLogger("align")
        self.log = RunLog()
        self.run_id: str | None = None
        """The run that is watched, once it has begun."""
        self.decision: dict[str, Any] | None = None
        """What a retraining came to, once it has: for whoever called the flow, should Prefect be gone when it ends."""

    def begin(self, run_id: str, log: Path) -> None:
        """The run has begun, and this file is its log."""
        self.run_id = run_id
        self.log.begin(log)

    def line(self, label: str, text: str) -> None:
        """A line of a stage's output."""
        self._hear(label, text)

    def progress(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, float]) -> bool:
        """How far a stage is; says whether that was worth a line, as it is now and then."""
        text = so_far(done, total, unit, figures)
        worth = self.log.progress(label, done, total, text)
        if worth:
            self.logger.info("%s: %s", label, text)
        return worth

    def stage(self, label: str, status: str, detail: str = "") -> None:
        """A stage began or ended."""
        self._hear(label, f"{status} ({detail})" if detail else status)

    def _hear(self, label: str, text: str) -> None:
        self.logger.info("%s: %s", label, text)
        self.log.say(label, text)


class TerminalWatcher(Watcher):
    """One bar a stage on standard error, with figures and time left; plain lines where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def line(self, label: str, text: str) -> None:
        super().line(label, text)
        self._print(f"  {label}: {text}")

    def stage(self, label: str, status: str, detail: str = "") -> None:
        super().stage(label, status, detail)
        if (task := self.tasks.pop(label, None)) is not None and self.bars is not None:
            self.bars.remove_task(task)
        shown = coloured_status(status, sys.stderr)
        self._print(f"{label}: {shown} ({detail})" if detail else f"{label}: {shown}")

    def progress(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, float]) -> bool:
        worth, text = super().progress(label, done, total, unit, figures), so_far(done, total, unit, figures)
        if self.bars is None:
            if worth:
                self._print(f"  {label}: {text}")
            return worth
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, shown="")
        self.bars.update(self.tasks[label], completed=done, total=total, shown=text)
        return worth

    def _print(self, text: str) -> None:
        if self.bars is not None:
            from rich.text import Text

            self.bars.console.print(Text.from_ansi(text))
        else:
            # At once: `print` writes the end by itself, and stages may say things at the same time.
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Bars, if standard error is a terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
        )  # fmt: skip
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as self.bars:
            yield
        self.bars = None


def so_far(done: int, total: int, unit: str, figures: Mapping[str, float]) -> str:
    """Progress in words."""
    return "  ".join([f"{done}/{total} {unit}", *(f"{name} {value:.4g}" for name, value in figures.items())])


WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def watcher() -> Watcher:
    """The watcher of this run."""
    return WATCHER.get() or Watcher()
