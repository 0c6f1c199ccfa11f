"""A trainer's checkpoints: complete, or not there at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from artifacts.fingerprint import file_digest


def newest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that is complete: its manifest, written last, matches its files."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next((path for path in found if _intact(path)), None)


def _intact(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())
        return all(file_digest(checkpoint / name) == sha for name, sha in files.items())
    except (OSError, ValueError):
        return False


def seal_checkpoint(checkpoint: Path, keep: int) -> None:
    """Write the manifest that makes a checkpoint count, then let go of those beyond the newest `keep`."""
    files = {
        path.relative_to(checkpoint).as_posix(): file_digest(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    aside = checkpoint / "manifest.part"
    aside.write_text(json.dumps(files))
    aside.rename(checkpoint / "manifest.json")
    found = sorted(checkpoint.parent.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    sealed = [path for path in found if (path / "manifest.json").exists()]
    for path in found:
        if path not in sealed[-keep:]:  # too old, or torn by a crash
            shutil.rmtree(path)
