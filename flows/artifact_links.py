"""Files as MLflow artifacts: hard-linked into a local artifact store, uploaded to a remote one.

A symlink would break MLflow's listing, and a copy would double every model on the disk.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow.tracking import MlflowClient


def local_folder(client: MlflowClient, run: str) -> Path | None:
    """The folder of a run's artifacts, or None if they are not on this machine."""
    place = urlparse(client.get_run(run).info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def link_files(client: MlflowClient, run: str, source: Path, folder: str) -> None:
    """Put a file, or every file below a folder, under `folder` in the run's artifacts."""
    root = local_folder(client, run)
    if root is None:
        (client.log_artifacts if source.is_dir() else client.log_artifact)(run, str(source), folder)
        return
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for path in files:
        name = path.relative_to(source) if source.is_dir() else path.name
        _link(path, root / folder / name)


def link_checkpoints(client: MlflowClient, run: str, work: Path) -> None:
    """Let the run's `checkpoints/` hold the complete ones that the stage keeps, and no others."""
    complete = {path.parent.name: path.parent for path in work.glob("checkpoint-*/manifest.json")}
    if not complete:
        return
    root = local_folder(client, run)
    if root is None:
        return
    place = root / "checkpoints"
    for name, checkpoint in complete.items():
        if not (place / name / "manifest.json").exists():
            for path in sorted(checkpoint.rglob("*"), key=lambda path: path.name == "manifest.json"):
                if path.is_file():
                    _link(path, place / name / path.relative_to(checkpoint))
    for old in place.glob("checkpoint-*"):
        if old.name not in complete:
            shutil.rmtree(old)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
