"""Where outputs are kept: `$ALIGN_HOME/store/<uses>-<key>/`, complete or not there at all.

A stage works in `drafts/<uses>-<key>/`, the same folder each time it is started, so an interrupted stage finds its
own checkpoints. `commit` syncs the files, writes the manifest last and renames the folder. A hit is verified, not
believed. One key is worked on by one process at a time, under a lock that the kernel drops when its holders die.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.errors import HomeError, StageError
from artifacts.fingerprint import FileDigests, file_digest
from artifacts.locking import locked, wait_until
from artifacts.machine import machine_name
from artifacts.manifest import FileRecord, Manifest, digest_of, library_versions
from artifacts.syncing import sync_file, sync_folder, write_synced

KEY_IN_NAME = 20


class Store:
    """The folder that `home` (`$ALIGN_HOME`) names. Nothing is created until something is written."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.digests = FileDigests(home / "digests.json")

    def folder(self, uses: str, key: str) -> Path:
        """Where the finished output of this key is, or will be."""
        return self.home / "store" / f"{uses}-{key[:KEY_IN_NAME]}"

    def draft(self, uses: str, key: str) -> Path:
        """The one folder in which a stage with this key works."""
        return self.home / "drafts" / f"{uses}-{key[:KEY_IN_NAME]}"

    def get(self, uses: str, key: str) -> Manifest | None:
        """The manifest of a result that is there and intact, else None."""
        return None if self.damage(uses, key) is not None else Manifest.read(self.folder(uses, key))

    def damage(self, uses: str, key: str) -> str | None:
        """None if the result is there and intact, "" if it was never made, else what is wrong with it."""
        folder = self.folder(uses, key)
        if not folder.exists():
            return ""
        try:
            manifest = Manifest.read(folder)
        except (OSError, ValueError):
            return "its manifest is missing or unreadable"
        for name, record in manifest.files.items():
            path = folder / "out" / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != record.size:
                return f"{name} has {path.stat().st_size} bytes instead of {record.size}"
            if self.digests.of(path) != record.sha256:
                return f"the content of {name} has changed"
        return None

    def all(self) -> Iterator[Manifest]:
        """Every readable manifest, newest first."""
        found = []
        for path in (self.home / "store").glob("*/manifest.json"):
            try:
                found.append(Manifest.read(path.parent))
            except (OSError, ValueError):
                continue
        yield from sorted(found, key=lambda manifest: manifest.created, reverse=True)

    @contextmanager
    def lock(self, uses: str, key: str, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
        """Hold the key; yields a file descriptor that a trainer may inherit, so that the lock outlives us with it.

        While another process holds it, `waiting` is told who, again and again, and may raise to give up.
        """
        path = self._lock(uses, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            wait_until(partial(locked, fd), lambda: waiting(path.read_text() or "another process") if waiting else None)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
            yield fd
        finally:
            os.close(fd)

    def at_work(self, uses: str, key: str) -> str | None:
        """Who holds the key now."""
        try:
            fd = os.open(self._lock(uses, key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # nobody has worked on it, or it is not ours to look at
            return None
        try:
            return None if locked(fd) else os.pread(fd, 4096, 0).decode() or "another process"
        finally:
            os.close(fd)

    def _lock(self, uses: str, key: str) -> Path:
        return self.home / "locks" / f"{uses}-{key[:KEY_IN_NAME]}"

    def commit(
        self, *, uses: str, key: str, kind: str, payload: dict[str, Any], fields: dict[str, Any],
        metrics: dict[str, float], seconds: float, source_digest: str, remarks: Sequence[str] = (),
    ) -> Manifest:  # fmt: skip
        """Turn a finished draft into a result: sync, manifest last, rename. A damaged predecessor makes way."""
        draft, final = self.draft(uses, key), self.folder(uses, key)
        files = {
            path.relative_to(draft / "out").as_posix(): _seal(path)
            for path in sorted((draft / "out").rglob("*"))
            if path.is_file()
        }
        if not files:
            raise StageError(f"{uses}: finished without writing anything under {draft / 'out'}")
        manifest = Manifest(
            uses=uses, key=key, kind=kind, digest=digest_of(files), files=files, payload=payload, fields=fields,
            metrics=metrics, seconds=seconds, created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            source_digest=source_digest, versions=library_versions(), remarks=list(remarks),
            machine=machine_name(),
        )  # fmt: skip
        for folder in (draft / "out", *(path for path in (draft / "out").rglob("*") if path.is_dir())):
            sync_folder(folder)
        write_synced(draft / "manifest.json", manifest.model_dump_json(indent=1))
        sync_folder(draft)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(self._aside(final))
        draft.rename(final)
        sync_folder(final.parent)
        # Only now: a commit that dies before the rename leaves its checkpoints, and files that can be written again.
        shutil.rmtree(final / "work", ignore_errors=True)
        self._protect(final, files)
        return manifest

    def accept(self, uses: str, key: str, made: Path) -> str | None:
        """Take in a result that was made elsewhere, `made/out` with its manifest; None, or why it is not taken."""
        try:
            manifest = Manifest.read(made)
        except (OSError, ValueError):
            return "its manifest is missing or unreadable"
        if manifest.key != key:
            return f"it has the key {manifest.key[:12]}"
        found = {path.relative_to(made / "out").as_posix() for path in (made / "out").rglob("*") if path.is_file()}
        if found != set(manifest.files):
            return f"it lacks or has too much: {', '.join(sorted(found ^ set(manifest.files))[:3])}"
        for name, record in manifest.files.items():
            if _seal(made / "out" / name) != record:
                return f"the content of {name} has changed"
        self.set_aside(uses, key)
        final = self.folder(uses, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(made)
        made.rename(final)
        sync_folder(final.parent)
        self._protect(final, manifest.files)
        return None

    def _protect(self, final: Path, files: dict[str, FileRecord]) -> None:
        """Nobody writes into a result by mistake, and its digests need not be computed again."""
        for name, record in files.items():
            (final / "out" / name).chmod(0o444)
            self.digests.remember(final / "out" / name, record.sha256)
        self.digests.save()

    def set_aside(self, uses: str, key: str) -> None:
        """Take a damaged result out of the way; it is kept under `damaged/` for whoever wants to look."""
        if (final := self.folder(uses, key)).exists():
            final.rename(self._aside(final))

    def _aside(self, folder: Path) -> Path:
        place = self.home / "damaged" / f"{folder.name}-{time.time_ns()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def check_writable(self, needed: int) -> None:
        """Raise HomeError unless `needed` bytes can be written here."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            probe = self.home / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise HomeError(
                f"$ALIGN_HOME: wanted a folder that can be written, got {self.home} ({error.strerror}); "
                "set ALIGN_HOME to another folder or correct its rights"
            ) from error
        free = shutil.disk_usage(self.home).free
        if free < needed:
            raise HomeError(
                f"$ALIGN_HOME: wanted {needed / 2**20:,.0f} MiB free for this run, got {free / 2**20:,.0f} MiB "
                f"at {self.home}; make room or set ALIGN_HOME to another disk"
            )


def _seal(path: Path) -> FileRecord:
    """Sync a finished file and record it."""
    sync_file(path)
    return FileRecord(size=path.stat().st_size, sha256=file_digest(path))
