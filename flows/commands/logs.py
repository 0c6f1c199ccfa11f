"""`align logs`: what a run's stages said, while it goes on or after."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows.colours import coloured
from flows.records import RunRecord, find_record, stage_of
from flows.running.run_folder import RunFolder
from flows.running.run_log import TIME_LENGTH, said_by

POLL_S = 0.25


def show_logs(home: Path, what: str, label: str | None, *, follow: bool) -> int:
    """Print the log of a run, or of one stage of it (`RUN STAGE` or `RUN:STAGE`); raises UserError for another name.

    A stage that was cached says what it said when it was made, and so do all of a run from before runs had a log.
    """
    run, _, named = what.partition(":")
    record = find_record(home, run)
    stage = stage_of(record, label or named) if label or named else None
    log = RunFolder(home, record.run_id).log
    if log.exists() and (stage is None or stage["status"] != "cached"):
        said = _from_log(home, record, log, stage, follow)
    else:
        said = _kept(Store(home), record, stage)
    if not said:
        print(f"{stage['name'] if stage else record.run_id} has said nothing yet", file=sys.stderr)
    if follow:
        print(f"{record.run_id}: {record.status(home)}; align show {record.run_id}", file=sys.stderr)
    return 0


def _from_log(home: Path, record: RunRecord, log: Path, stage: Mapping[str, Any] | None, follow: bool) -> int:
    """Print the run's own log, or a stage's lines of it; gives how many."""
    printed = 0
    for line in lines_of(log, lambda: not follow or _over(home, record, stage)):
        if stage is None or said_by(line, stage["name"]):
            print(f"{coloured(line[:TIME_LENGTH], 'dim', sys.stdout)}{line[TIME_LENGTH:]}", flush=follow)
            printed += 1
    return printed


def lines_of(log: Path, over: Callable[[], bool]) -> Iterator[str]:
    """The whole lines of a file, and those that are added until `over` says that no more will be."""
    with log.open("rb") as file:
        rest = b""
        while True:
            last = over()
            *lines, rest = (rest + file.read()).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            if last:
                return
            time.sleep(POLL_S)


def _over(home: Path, record: RunRecord, stage: Mapping[str, Any] | None) -> bool:
    """Whether the run will add no more of what is wanted."""
    if stage is not None and stage_of(RunRecord.read(record.file(home)), stage["name"])["status"] != "planned":
        return True
    return record.status(home) != "running"


def _kept(store: Store, record: RunRecord, stage: Mapping[str, Any] | None) -> int:
    """Print what lies beside the results, or in the drafts, of all stages or of one; gives how many lines."""
    printed = 0
    for one in record.stages if stage is None else [stage]:
        uses, key = one["uses"], one["key"]
        files = [folder / "log.txt" for folder in (store.folder(uses, key), store.draft(uses, key))]
        for line in next((file.read_text(errors="replace").splitlines() for file in files if file.exists()), []):
            print(line if stage is not None else f"{one['name']}: {line}")
            printed += 1
    return printed
