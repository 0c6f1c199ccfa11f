"""What a pipeline run keeps beside its record, in `$ALIGN_HOME/runs/<run_id>/`, and whether its process is there.

facts.json   experiment, tags, parameters and data sets; when it started; at the end description, figures and status
files/       what becomes its artifacts in MLflow: the recipe, the plan, the comparison
log.txt      what was said while it ran (flows/running/run_log.py)
lock         held by the process that the run is of
<server>/    what that server has of it (flows/tracking/sent.py)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.locking import held


class RunFolder:
    """One run's folder; read in a moment, without MLflow."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.folder = home / "runs" / run_id
        self.files = self.folder / "files"
        self.log = self.folder / "log.txt"
        self._facts = self.folder / "facts.json"

    @property
    def facts(self) -> dict[str, Any] | None:
        """What is known of the run so far; None if it was never tracked from here."""
        return json.loads(self._facts.read_text()) if self._facts.exists() else None

    @property
    def last_said(self) -> float:
        """When it last wrote anything, in seconds since the epoch."""
        return max(path.stat().st_mtime for path in (self._facts, self.log) if path.exists())

    def lost(self) -> bool:
        """Whether its process is gone without a word."""
        return self.facts is not None and self.facts["status"] == "RUNNING" and not self.live()

    def live(self) -> bool:
        """Whether its process is there."""
        if not (self.folder / "lock").exists():
            return False
        with held(self.folder / "lock") as free:
            return not free
