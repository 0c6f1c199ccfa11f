"""`align gc`: shows what no kept run refers to, and with `--yes` removes it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from artifacts.garbage import DAY_S, find_garbage, remove
from artifacts.store import Store
from flows.home import align_home
from flows.records import RunRecord, load_records
from flows.tables import garbage_table

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def collect(*, keep_runs: int | None, draft_days: float, yes: bool, as_json: bool) -> int:
    """Print what can go; with `yes`, remove it, and forget the runs beyond the newest `keep_runs`."""
    store = Store(align_home())
    registered = registered_results(store)
    found = find_garbage(store, _kept(store, keep_runs, draft_days) | registered, draft_days)
    lines: list[dict[str, Any]] = [
        {"path": str(one.folder), "bytes": one.size, "why": one.why, "removed": False} for one in found
    ]
    if not as_json:
        print(garbage_table(lines, yes))
    if yes:
        _forget(store, keep_runs, draft_days)
        for garbage, line in zip(found, lines, strict=True):
            if garbage.folder.name not in _kept(store, keep_runs, draft_days):  # a run may have begun meanwhile
                line["removed"] = remove(store, garbage)
                print(f"{'removed' if line['removed'] else 'in use now:'} {garbage.folder}", file=sys.stderr)
    if as_json:
        print(json.dumps({"garbage": lines}))
    return 0


def _kept(store: Store, keep_runs: int | None, draft_days: float) -> set[str]:
    """The store's names of all that the kept runs refer to."""
    runs = load_records(store.home)
    kept = [run for place, run in enumerate(runs) if _stays(store, run, place, keep_runs, draft_days)]
    return {store.folder(stage["uses"], stage["key"]).name for run in kept for stage in run.stages}


def _stays(store: Store, run: RunRecord, place: int, keep_runs: int | None, draft_days: float) -> bool:
    """The newest `keep_runs`, and those that may still be going on."""
    if keep_runs is None or place < keep_runs:
        return True
    unfinished = any(stage["status"] == "planned" for stage in run.stages)
    return unfinished and time.time() - run.file(store.home).stat().st_mtime < draft_days * DAY_S


def _forget(store: Store, keep_runs: int | None, draft_days: float) -> None:
    for place, run in enumerate(load_records(store.home)):
        if not _stays(store, run, place, keep_runs, draft_days):
            run.file(store.home).unlink()
            shutil.rmtree(store.home / "runs" / run.run_id, ignore_errors=True)


def registered_results(store: Store) -> set[str]:
    """The store's names of results that are versions of a registered model in MLflow.

    Raises UserError unless MLflow answers for each of them: what it does not say may be needed.
    """
    from flows.tracking.mlflow_server import KEY_TAG, USES_TAG, MlflowServer, every

    server = MlflowServer.reach(store.home)
    found = set()
    with server.answering():
        for run in {version.run_id for version in every(server.client.search_model_versions) if version.run_id}:
            tags = _tags(server.client, run)
            if KEY_TAG in tags:
                found.add(store.folder(tags[USES_TAG], tags[KEY_TAG]).name)
    return found


def _tags(client: MlflowClient, run: str) -> Mapping[str, str]:
    """A run's tags; none if it was deleted for good."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_run(run).data.tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
