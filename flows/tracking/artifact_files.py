"""Files as MLflow artifacts: hard-linked into an artifact store on this machine, sent to one that is elsewhere.

A symlink would break MLflow's listing, and a copy would double every model on the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from flows.tracking.system_metrics import SYSTEM

CHECKPOINTS = "checkpoints"
HISTORY = ("metrics.jsonl", "samples.jsonl", SYSTEM)
STAGE_FILES = ("manifest.json", *HISTORY, "key.json", "log.txt")
"""What lies beside a result, and goes with it."""


def local_folder(client: MlflowClient, run: str) -> Path | None:
    """The folder of a run's artifacts, or None if they are not on this machine."""
    place = urlparse(client.get_run(run).info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def put_files(client: MlflowClient, run: str, source: Path, folder: str) -> None:
    """Put a file, or every file below a folder, under `folder` in the run's artifacts."""
    root = local_folder(client, run)
    if root is None:
        (client.log_artifacts if source.is_dir() else client.log_artifact)(run, str(source), folder)
        return
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for path in files:
        name = path.relative_to(source) if source.is_dir() else path.name
        _link(path, root / folder / name)


def put_checkpoints(
    client: MlflowClient, run: str, draft: Path, sent: set[str], add: Callable[[list[str]], None]
) -> None:
    """Let the run's `checkpoints/` hold the complete ones that the stage keeps; of those elsewhere, the newest alone.

    `sent` and `add` tell what an artifact store elsewhere has already.
    """
    complete = {path.parent.name: path.parent for path in (draft / "work").glob("checkpoint-*/manifest.json")}
    if not complete:
        return
    root = local_folder(client, run)
    if root is None:
        newest = max(complete.values(), key=lambda path: int(path.name.rsplit("-", 1)[1]))
        if newest.name not in sent:
            _send_checkpoint(client, run, draft, newest)
            add([newest.name])
            _drop_others(client, run, newest.name)
        return
    place = root / CHECKPOINTS
    for name, checkpoint in complete.items():
        if not (place / name / "manifest.json").exists():
            for path in sorted(checkpoint.rglob("*"), key=lambda path: path.name == "manifest.json"):
                if path.is_file():
                    _link(path, place / name / path.relative_to(checkpoint))
    for old in place.glob("checkpoint-*"):
        if old.name not in complete:
            shutil.rmtree(old)


def _send_checkpoint(client: MlflowClient, run: str, draft: Path, checkpoint: Path) -> None:
    """Its files, with what was logged until it; its manifest last, since that says that all is there."""
    place = f"{CHECKPOINTS}/{checkpoint.name}"
    for name in HISTORY:
        if (draft / name).exists():
            client.log_artifact(run, str(draft / name), place)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"):
        client.log_artifact(run, str(path), f"{place}/{path.parent.relative_to(checkpoint)}".removesuffix("/."))
    client.log_artifact(run, str(checkpoint / "manifest.json"), place)


def _drop_others(client: MlflowClient, run: str, kept: str) -> None:
    """Let older checkpoints go. An account that may write but not delete, and a store that can't, leave them there."""
    store = get_artifact_repository(client.get_run(run).info.artifact_uri, client.tracking_uri)
    with suppress(Exception):  # stores raise what they like
        for each in client.list_artifacts(run, CHECKPOINTS):
            if each.is_dir and each.path != f"{CHECKPOINTS}/{kept}":
                store.delete_artifacts(each.path)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
