"""`align run` and `align retrain`: a flow, watched from a terminal, and its answer as tables or as JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.errors import AlignError, InterruptedStage, StageError
from artifacts.store import Store
from flows.addresses import without_secrets
from flows.colours import coloured
from flows.commands.planning import Wanted, plan_of
from flows.commands.without_prefect import NO_SERVER, without_prefect
from flows.home import RECORDS, align_home
from flows.running.watch import WATCHER, TerminalWatcher, Watcher
from flows.tables import gate_table


@dataclass(frozen=True)
class Ended:
    """How a flow that was called from here ended."""

    watcher: Watcher
    failure: AlignError | None = None
    prefect_left: bool = False

    def leave(self) -> int:
        """Say what failed, on standard error; gives the exit status."""
        status = 0
        if self.failure is not None:
            status = self.failure.exit_status
            for line in str(self.failure).splitlines():
                print(f"{coloured('error:', 'red', sys.stderr)} {without_secrets(line)}", file=sys.stderr)
        if self.prefect_left:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # its exit handlers would try to reach it for minutes; all of ours is done
        return status


def run_recipe(wanted: Wanted, *, jobs: int, offline: bool, as_json: bool, quiet: bool) -> int:
    """Run a recipe; what is wrong with it is found before Prefect is even imported."""
    home = align_home()
    store = Store(home)
    plan = plan_of(wanted, store)
    store.check_writable(RECORDS)
    print(f"{len(plan.stages)} stages; outputs go to {home}", file=sys.stderr)

    def flow() -> None:
        from flows.align import align

        align(
            recipe=str(wanted.recipe), overrides=dict(wanted.overrides), execution=dict(wanted.execution),
            sweep={name: list(values) for name, values in wanted.sweep.items()}, max_branches=wanted.max_branches,
            until=wanted.until or "", strict_env=wanted.strict_env, refresh=list(wanted.refresh), jobs=jobs,
            offline_tracking=offline,
        )  # fmt: skip

    ended = _called(flow, home, quiet=quiet)
    run_id = ended.watcher.run_id
    if run_id is not None and (home / "runs" / f"{run_id}.json").exists():  # else it failed before it began
        _show_run(home, run_id, as_json)
    return ended.leave()


def retrain_recipe(given: Mapping[str, Any], *, as_json: bool) -> int:
    """`align retrain`: the flow that is scheduled, once and here; prints what became of it."""
    home = align_home()
    Store(home).check_writable(RECORDS)

    def flow() -> None:
        from flows.retrain import align_retrain

        align_retrain(**given)

    ended = _called(flow, home, quiet=False)
    if (done := ended.watcher.decision) is not None:
        if as_json:
            print(json.dumps(done))
        else:
            print("\n".join(filter(None, [gate_table(done["conditions"]) if done["conditions"] else "", done["said"]])))
    elif ended.failure is None:
        assert ended.prefect_left
        gone = "Prefect went away before anything was decided; run the same command again to go on"
        ended = replace(ended, failure=StageError(gone))
    return ended.leave()


def _called(flow: Callable[[], object], home: Path, *, quiet: bool) -> Ended:
    """Call a flow, and see how it ends; Ctrl-C is the caller's unless Prefect stands in its way."""
    with watched(quiet=quiet) as watcher:
        from httpx import HTTPError
        from prefect.exceptions import CancelledRun, UnfinishedRun

        from flows.running.ephemeral import keep_from_ctrl_c

        keep_from_ctrl_c()
        try:
            flow()
        except AlignError as error:
            return Ended(watcher, error)
        except UnfinishedRun:  # Cancel came when all was done
            return Ended(watcher)
        except CancelledRun as error:
            return Ended(watcher, InterruptedStage(str(error)))
        except (HTTPError, RuntimeError) as error:  # Prefect's
            if isinstance(error, RuntimeError) and not str(error).startswith(NO_SERVER):
                raise
            return Ended(watcher, without_prefect(home, watcher, error), prefect_left=True)
    return Ended(watcher)


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


def _as_ctrl_c(number: int, frame: object) -> None:
    """Whoever ends the run with SIGTERM gets what Ctrl-C gives: saved work, no orphan, and status 130."""
    raise KeyboardInterrupt


def _show_run(home: Path, run_id: str, as_json: bool) -> None:
    """Print what is left of a run."""
    from flows.commands.run_tables import run_end
    from flows.records import find_record

    record = find_record(home, run_id)
    print(json.dumps(record.described(home)) if as_json else run_end(record, home))
