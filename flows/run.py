"""`align run`: the flow, watched from a terminal, and its answer as tables or as JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from artifacts.errors import AlignError, StageError, UserError
from artifacts.store import Store
from flows.home import align_home
from flows.planning import Wanted, plan_of
from flows.watch import WATCHER, TerminalWatcher, Watcher


def run_recipe(wanted: Wanted, *, jobs: int, offline: bool, as_json: bool, quiet: bool) -> int:
    """Run a recipe; what is wrong with it is found before Prefect is even imported."""
    home = align_home()
    store = Store(home)
    plan = plan_of(wanted, store)
    store.check_writable(0)
    watcher = Watcher() if quiet else TerminalWatcher()
    WATCHER.set(watcher)
    print(f"{len(plan.stages)} stages; outputs go to {home}", file=sys.stderr)
    _quieten()
    from httpx import HTTPError

    from flows.align import align

    signal.signal(signal.SIGTERM, _as_ctrl_c)
    failure: AlignError | None = None
    prefect_left = False
    with watcher.showing() if isinstance(watcher, TerminalWatcher) else _nothing():
        try:
            align(
                str(wanted.recipe), dict(wanted.overrides), dict(wanted.execution), wanted.until, wanted.strict_env,
                offline, {name: list(values) for name, values in wanted.sweep.items()}, wanted.max_branches, jobs,
            )  # fmt: skip
        except AlignError as error:
            failure = error
        except HTTPError as error:  # Prefect's
            failure, prefect_left = _without_prefect(home, watcher, error), True
    status = _answer(home, watcher.run_id, failure, as_json)
    if prefect_left:
        sys.stdout.flush()
        os._exit(status)  # its exit handlers would try to reach it for minutes; all of ours is done
    return status


def _quieten() -> None:
    """Neither a log that people did not ask for, nor what Prefect says of its own threads when its server is away."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    logging.raiseExceptions = False


def _without_prefect(home: Path, watcher: Watcher, error: Exception) -> AlignError | None:
    """What a run amounts to whose Prefect server does not answer: it ends as it would have, if it could begin."""
    from flows.records import find_record
    from flows.tracked_run import TrackedRun

    if watcher.run_id is None:
        return UserError(_why_not(error))
    facts = TrackedRun(home, watcher.run_id).facts
    if facts is None or facts["status"] == "RUNNING":
        return StageError(f"Prefect went away: {error}; run the same command again to go on")
    watcher.line("prefect", "went away and has not heard how the run ended; `align sync` tells it")
    failed = [stage for stage in find_record(home, watcher.run_id).stages if stage["status"] == "failed"]
    return StageError("\n".join(stage["error"] for stage in failed)) if failed else None


def _why_not(error: Exception) -> str:
    """Why Prefect can't be used, in words that say what to do."""
    from flows.servers import asking
    from flows.servers.passwords import prefect_password
    from flows.servers.state import named_prefect

    server, password = (named_prefect() or "").rstrip("/").removesuffix("/api"), prefect_password()
    trouble = asking.prefect_trouble(server, password) if server else None
    if trouble is None:
        return f"Prefect can't be reached: {error}; start its server, or unset PREFECT_API_URL"
    do = password.do if trouble == asking.Trouble.PASSWORD else "see to that server"
    return f"Prefect at {server} {trouble}; {do}, or unset PREFECT_API_URL"


def _as_ctrl_c(number: int, frame: object) -> None:
    """Whoever ends the run with SIGTERM gets what Ctrl-C gives: saved work, no orphan, and status 130."""
    raise KeyboardInterrupt


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _answer(home: Path, run_id: str | None, failure: AlignError | None, as_json: bool) -> int:
    """Print what is left of the run; the exit status is the failure's."""
    from flows.records import find_record
    from flows.tables import run_tables

    if run_id is None:  # it failed before it began
        assert failure is not None
        raise failure
    record = find_record(home, run_id)
    if as_json:
        print(json.dumps(record.as_dict()))
    else:
        print(run_tables(record, paths=False))
    if failure is not None:
        for line in str(failure).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return failure.exit_status
    return 0
