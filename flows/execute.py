"""One stage, once: verified in the store, or made under its lock, tracked while it runs, committed at the end."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from artifacts.manifest import Manifest
from artifacts.store import Store
from flows.launch import launch
from flows.tracking import Tracker
from flows.watch import Watcher
from pipelines.plan import Planned
from tasks.context import Execution
from tasks.job import Job

Status = Literal["ran", "cached", "resumed", "failed", "skipped"]


@dataclass(frozen=True)
class StageResult:
    """A stage's line in the answer of `align run --json`."""

    name: str
    uses: str
    key: str
    status: Status
    seconds: float
    path: str | None
    digest: str | None
    metrics: dict[str, float]
    mlflow_run_id: str | None
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def execute(
    planned: Planned, store: Store, tracker: Tracker, watcher: Watcher, *, seed: int, execution: Execution
) -> StageResult:
    """Make the stage's output unless it is there; raises what the stage raised."""
    started = time.monotonic()
    uses, key = planned.uses, planned.key

    def waiting(holder: str) -> None:
        watcher.line(planned.label, f"waits for {holder}, which works on the same stage")

    with store.lock(uses, key, waiting) as lock:
        damage = store.damage(uses, key)
        if damage is None:  # made by someone else while we waited
            return found(planned, store, tracker)
        if damage:
            watcher.line(planned.label, f"its stored output is damaged ({damage}) and is made again")
            store.set_aside(uses, key)
        draft = store.draft(uses, key)
        resumes = any(draft.glob("work/checkpoint-*/manifest.json"))
        draft.mkdir(parents=True, exist_ok=True)
        (draft / "key.json").write_text(json.dumps(planned.payload, indent=1, sort_keys=True))
        job = Job.of(planned.stage, uses=uses, key=key, seed=seed, execution=execution, draft=draft)
        with tracker.following(planned, draft) as run:
            result = launch(job, planned.label, lock, watcher)
        manifest = store.commit(
            uses=uses, key=key, kind=planned.handle.kind, payload=planned.payload, fields=planned.stage.settings(),
            metrics=result["metrics"], seconds=result["seconds"], source_digest=planned.stage.source_digest(),
        )  # fmt: skip
        tracker.finish(run, planned, manifest, store.folder(uses, key))
    return _line(planned, manifest, "resumed" if resumes else "ran", time.monotonic() - started, store, run)


def found(planned: Planned, store: Store, tracker: Tracker) -> StageResult:
    """The line of a stage whose output is in the store."""
    manifest = Manifest.read(store.folder(planned.uses, planned.key))
    return _line(planned, manifest, "cached", 0.0, store, tracker.run_of(planned.key))


def missing(planned: Planned, status: Status, error: str | None, seconds: float = 0.0) -> StageResult:
    """The line of a stage that has no output: failed, or skipped because something before it failed."""
    return StageResult(planned.label, planned.uses, planned.key, status, seconds, None, None, {}, None, error)


def _line(
    planned: Planned, manifest: Manifest, status: Status, seconds: float, store: Store, run: str | None
) -> StageResult:
    path = str(store.folder(planned.uses, planned.key) / "out")
    return StageResult(
        planned.label,
        planned.uses,
        planned.key,
        status,
        seconds,
        path,
        manifest.digest,
        manifest.metrics,
        run,
        None,
    )
