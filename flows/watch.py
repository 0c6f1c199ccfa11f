"""Who watches a run: the log alone, or progress bars on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Watcher:
    """Hears what happens; this one says nothing but to the log it is given."""

    def __init__(self) -> None:
        self.logger: Any = logging.getLogger("align")
        self.run_id: str | None = None
        """The run that is watched, once it has begun."""

    def line(self, label: str, text: str) -> None:
        """A line of a stage's output."""
        self.logger.info("%s: %s", label, text)

    def progress(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        """How far a stage is."""

    def stage(self, label: str, status: str, detail: str = "") -> None:
        """A stage began or ended."""
        self.logger.info("%s: %s%s", label, status, f" ({detail})" if detail else "")


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
        self._print(f"{label}: {status}{f' ({detail})' if detail else ''}")

    def progress(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, float]) -> None:
        if self.bars is None:
            return
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, shown="")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.bars.update(self.tasks[label], completed=done, total=total, shown=f"{done}/{total} {unit}  {shown}")

    def _print(self, text: str) -> None:
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

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


WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def watcher() -> Watcher:
    """The watcher of this run."""
    return WATCHER.get() or Watcher()
