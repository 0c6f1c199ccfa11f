"""One stage, once: verified in the store, or made under its lock, tracked while it runs, committed at the end."""

from __future__ import annotations

import itertools
import json
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from artifacts.errors import OutOfMemoryError
from artifacts.manifest import Manifest
from artifacts.store import Store
from flows.running.launch import go_on, launch
from flows.running.shown_slots import shown
from flows.running.slots import Holder, Needed, Taken, taken
from flows.running.watch import Watcher
from pipelines.plan import Planned
from tasks.context import Execution
from tasks.job import Job

if TYPE_CHECKING:
    from flows.tracking.tracker import Tracker

Status = Literal["ran", "cached", "resumed", "failed", "skipped", "planned"]
"""`planned`: the run has not come to it, or was killed before it did."""


@dataclass(frozen=True)
class StageResult:
    """A stage's line in the answer of `align run --json`, where its run in MLflow stands too."""

    name: str
    uses: str
    key: str
    status: Status
    seconds: float
    path: str | None
    digest: str | None
    metrics: dict[str, float]
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def execute(
    planned: Planned, store: Store, tracker: Tracker, watcher: Watcher, *, seed: int, execution: Execution
) -> StageResult:
    """Make the stage's output unless it is there; raises what the stage raised."""
    started = time.monotonic()
    uses, key = planned.uses, planned.key
    waiting = Waiting(planned.label, watcher)
    with store.lock(uses, key, lambda who: waiting(f"{who}, which works on the same stage")) as lock:
        damage = store.damage(uses, key)
        if damage is None:  # made by someone else while we waited
            return found(planned, store, tracker)
        if damage:
            watcher.line(planned.label, f"its stored output is damaged ({damage}) and is made again")
            store.set_aside(uses, key)
        if tracker.fetched(planned, waiting):
            return found(planned, store, tracker)
        draft = store.draft(uses, key)
        resumes = planned.stage.begun(draft / "work")
        draft.mkdir(parents=True, exist_ok=True)
        (draft / "key.json").write_text(json.dumps(planned.payload, indent=1, sort_keys=True))
        job = Job.of(planned.stage, uses=uses, key=key, seed=seed, execution=execution, draft=draft)
        manifest = _made(job, planned, lock, store, tracker, waiting)
    return _line(planned, manifest, "resumed" if resumes else "ran", time.monotonic() - started, store)


def _made(job: Job, planned: Planned, lock: int, store: Store, tracker: Tracker, waiting: Waiting) -> Manifest:
    """Train, with a GPU if there is one, and commit."""
    with ExitStack() as slots:
        holder = Holder(waiting.watcher.run_id, planned.label, os.getpid())
        have = slots.enter_context(taken(Needed.by(job), holder, waiting))
        slots.enter_context(shown(have.slots))
        with tracker.following(planned):
            result, remarks = _launched(job, planned, lock, have, waiting.watcher)
            slots.close()
            tracker.hurry()  # a commit lets go of the checkpoints
            return store.commit(
                uses=job.uses, key=job.key, kind=planned.handle.kind, payload=planned.payload,
                fields=planned.stage.settings(), metrics=result["metrics"], seconds=result["seconds"],
                source_digest=planned.stage.source_digest(), remarks=remarks,
            )  # fmt: skip


@dataclass
class Waiting:
    """Says for whom a stage waits, each time that it is somebody else; gives up when the run is to end."""

    label: str
    watcher: Watcher
    said: str = ""

    def __call__(self, who: str) -> None:
        go_on()
        if who != self.said:
            self.watcher.line(self.label, f"waits for {who}")
        self.said = who


def _launched(job: Job, planned: Planned, lock: int, have: Taken, watcher: Watcher) -> tuple[dict[str, Any], list[str]]:
    """The stage's result; and what is to be remembered of how it came about.

    After running out of memory it goes on from its last checkpoint with half the micro-batch, as often as `retries`
    allows. That it once did so is kept in the draft: it is true of the result in a later attempt too.
    """
    kept = job.draft / "remarks.json"
    remarks: list[str] = json.loads(kept.read_text()) if kept.exists() else []
    for attempt in itertools.count():
        try:
            return launch(job, planned.label, watcher, (lock, *have.locks), have.environment), remarks
        except OutOfMemoryError as error:
            smaller = planned.stage.in_half_the_memory(job.execution)
            if smaller is None or attempt >= job.execution.retries:
                raise
            rows = planned.stage.micro_batch(job.execution)
            watcher.line(planned.label, f"{error}; goes on with micro_batch {smaller.micro_batch}")
            remarks.append(
                f"ran out of memory with micro_batch {rows} and went on with {smaller.micro_batch}: equal to an "
                "undisturbed run within rounding, not byte for byte"
            )
            kept.write_text(json.dumps(remarks))
            job = job.model_copy(update={"execution": smaller})
    raise AssertionError("the loop above ends by itself")


def found(planned: Planned, store: Store, tracker: Tracker) -> StageResult:
    """The line of a stage whose output is in the store."""
    tracker.cached(planned)
    manifest = Manifest.read(store.folder(planned.uses, planned.key))
    return _line(planned, manifest, "cached", 0.0, store)


def missing(planned: Planned, status: Status, error: str | None, seconds: float = 0.0) -> StageResult:
    """The line of a stage that has no output: failed, skipped because something before it failed, or not begun."""
    return StageResult(planned.label, planned.uses, planned.key, status, seconds, None, None, {}, error)


def _line(planned: Planned, manifest: Manifest, status: Status, seconds: float, store: Store) -> StageResult:
    path = str(store.folder(planned.uses, planned.key) / "out")
    return StageResult(
        planned.label, planned.uses, planned.key, status, seconds, path, manifest.digest, manifest.metrics, None
    )
