"""What one MLflow server has been sent of one run. On disk, so that no point is sent twice, whoever sends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.locking import held
from artifacts.syncing import write_whole


class Sent:
    """`folder` is of the run and the server.

    run_id        the run there, once it has been made
    described     a mark: it has its parameters and data sets
    points.txt    the points that it has
    pending       a mark: points were on their way when whoever sent them stopped
    complete      a mark: it has everything
    goes_on       a mark: it had ended, and the run goes on
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether nobody else is sending this run; nobody does until the end of the block."""
        with held(self.folder / "lock") as free:
            yield free

    @property
    def run_id(self) -> str | None:
        """The run's id on the server, if it has been made there."""
        path = self.folder / "run_id"
        return path.read_text() if path.exists() else None

    def made(self, run_id: str) -> None:
        """The server knows the run under this id; nothing more is known of what it has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("points.txt", "described", "complete"):
            (self.folder / name).unlink(missing_ok=True)
        self.mark("pending")
        write_whole(self.folder / "run_id", run_id)

    def mark(self, name: str) -> None:
        """Set one of the marks."""
        (self.folder / name).touch()

    def unmark(self, name: str) -> None:
        """Take a mark away."""
        (self.folder / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether a mark is set."""
        return (self.folder / name).exists()

    def points(self) -> set[str]:
        """The points that the server has."""
        path = self.folder / "points.txt"
        return set(path.read_text().split("\n")) if path.exists() else set()

    def add(self, points: list[str]) -> None:
        """The server has these too."""
        with (self.folder / "points.txt").open("a") as file:
            file.writelines(name + "\n" for name in points)
