"""What one MLflow server has been sent of one run. On disk, so that no point is sent twice, whoever sends it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Sent:
    """`folder` is of the run and the server: it holds the run's id there, the points sent, and a mark when all is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run, self._points, self._complete = folder / "run_id", folder / "points.txt", folder / "complete"

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether nobody else is sending this run; nobody does until the end of the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)

    @property
    def run_id(self) -> str | None:
        """The run's id on the server, if it has been made there."""
        return self._run.read_text() if self._run.exists() else None

    def made(self, run_id: str) -> None:
        """The server knows the run under this id, and nothing more of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._points.unlink(missing_ok=True)
        self.reopen()
        self._run.write_text(run_id)

    def points(self) -> set[str]:
        """The points that the server has."""
        return set(self._points.read_text().splitlines()) if self._points.exists() else set()

    def add(self, points: list[str]) -> None:
        """The server has these too."""
        with self._points.open("a") as file:
            file.writelines(name + "\n" for name in points)

    @property
    def complete(self) -> bool:
        """Whether the server has everything."""
        return self._complete.exists()

    def close(self) -> None:
        """The server has everything."""
        self._complete.touch()

    def reopen(self) -> None:
        """There is more to come."""
        self._complete.unlink(missing_ok=True)
