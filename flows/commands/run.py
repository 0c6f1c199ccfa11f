"""`align run` and `align retrain`: a flow, watched from a terminal, and its answer as tables or as JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from artifacts.errors import AlignError, StageError, UserError
from artifacts.store import Store
from flows.addresses import without_secrets
from flows.colours import coloured
from flows.commands.planning import Wanted, plan_of
from flows.home import align_home
from flows.running.watch import WATCHER, TerminalWatcher, Watcher
from flows.tables import gate_table


def run_recipe(wanted: Wanted, *, jobs: int, offline: bool, as_json: bool, quiet: bool) -> int:
    """Run a recipe; what is wrong with it is found before Prefect is even imported."""
    home = align_home()
    store = Store(home)
    plan = plan_of(wanted, store)
    store.check_writable(0)
    print(f"{len(plan.stages)} stages; outputs go to {home}", file=sys.stderr)
    failure: AlignError | None = None
    prefect_left = False
    with watched(quiet=quiet) as watcher:
        from httpx import HTTPError

        from flows.align import align

        try:
            align(
                str(wanted.recipe), dict(wanted.overrides), dict(wanted.execution), wanted.until, wanted.strict_env,
                offline, {name: list(values) for name, values in wanted.sweep.items()}, wanted.max_branches, jobs,
                list(wanted.refresh),
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


def retrain_recipe(given: Mapping[str, Any], *, as_json: bool) -> int:
    """`align retrain`: the flow that is scheduled, once and here; prints what became of it."""
    with watched(quiet=False):
        from httpx import HTTPError

        from flows.retrain import align_retrain

        try:
            done = align_retrain(**given)
        except HTTPError as error:  # Prefect's
            raise UserError(f"Prefect can't be reached: {error}; start its server, or unset PREFECT_API_URL") from error
    if as_json:
        print(json.dumps(done))
        return 0
    if done["conditions"]:
        print(gate_table(done["conditions"]))
    print(done["said"])
    return 0


@contextmanager
def watched(*, quiet: bool) -> Iterator[Watcher]:
    """For a flow within this block: bars or lines on the terminal, no log of Prefect's, SIGTERM as Ctrl-C."""
    watcher = Watcher() if quiet else TerminalWatcher()
    WATCHER.set(watcher)
    _quieten()
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    with watcher.showing() if isinstance(watcher, TerminalWatcher) else nullcontext():
        yield watcher


def _quieten() -> None:
    """Neither a log that people did not ask for, nor what Prefect says of its own threads when its server is away."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    logging.raiseExceptions = False


def _without_prefect(home: Path, watcher: Watcher, error: Exception) -> AlignError | None:
    """What a run amounts to whose Prefect server does not answer: it ends as it would have, if it could begin."""
    from flows.records import find_record
    from flows.running.run_folder import RunFolder

    said = without_secrets(str(error))
    if watcher.run_id is None:
        return UserError(_why_not(error))
    facts = RunFolder(home, watcher.run_id).facts
    if facts is None or facts["status"] == "RUNNING":
        return StageError(f"Prefect went away: {said}; run the same command again to go on")
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
        return f"Prefect can't be reached: {without_secrets(str(error))}; start its server, or unset PREFECT_API_URL"
    do = password.do if trouble == asking.Trouble.PASSWORD else "see to that server"
    return f"Prefect at {without_secrets(server)} {trouble}; {do}, or unset PREFECT_API_URL"


def _as_ctrl_c(number: int, frame: object) -> None:
    """Whoever ends the run with SIGTERM gets what Ctrl-C gives: saved work, no orphan, and status 130."""
    raise KeyboardInterrupt


def _answer(home: Path, run_id: str | None, failure: AlignError | None, as_json: bool) -> int:
    """Print what is left of the run; the exit status is the failure's."""
    from flows.commands.run_tables import run_end
    from flows.records import find_record

    if run_id is None:  # it failed before it began
        assert failure is not None
        raise failure
    record = find_record(home, run_id)
    if as_json:
        print(json.dumps(record.described(home)))
    else:
        print(run_end(record, home))
    if failure is not None:
        for line in str(failure).splitlines():
            print(f"{coloured('error:', 'red', sys.stderr)} {line}", file=sys.stderr)
        return failure.exit_status
    return 0
