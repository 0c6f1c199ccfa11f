"""What a flow amounts to whose Prefect server does not answer: it ends as it would have, if it could begin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import AlignError, InterruptedStage, StageError, UserError
from flows.addresses import without_secrets
from flows.running.watch import Watcher

NO_SERVER = ("Failed to reach API at", "Found incompatible versions")
"""How a plain RuntimeError of Prefect's begins that is about its server: away when the flow begins, or of no use."""


def without_prefect(home: Path, watcher: Watcher, error: Exception) -> AlignError | None:
    """Why the flow ended, whose end Prefect could not be told; None if nothing is wrong with what it did."""
    from prefect.exceptions import TerminationSignal

    behind = list(_behind(error))
    if any(isinstance(one, KeyboardInterrupt | TerminationSignal) for one in behind):
        return InterruptedStage(f"interrupted, and {_gone(error)}; run the same command again to go on")
    if (own := next((one for one in behind if isinstance(one, AlignError)), None)) is not None:
        return own
    if watcher.decision is not None:
        watcher.line("prefect", "went away and has not heard what was decided")
        return None
    return UserError(_why_not(error)) if watcher.run_id is None else _of_run(home, watcher, watcher.run_id, error)


def _of_run(home: Path, watcher: Watcher, run_id: str, error: Exception) -> AlignError | None:
    """The same, of a run that had begun."""
    from flows.records import find_record
    from flows.running.run_folder import RunFolder

    facts = RunFolder(home, run_id).facts
    if facts is None or facts["status"] in ("RUNNING", "KILLED"):
        return StageError(f"{_gone(error)}; run the same command again to go on")
    watcher.line("prefect", "went away and has not heard how the run ended; `align sync` tells it")
    failed = [stage for stage in find_record(home, run_id).stages if stage["status"] == "failed"]
    return StageError("\n".join(stage["error"] for stage in failed)) if failed else None


def _behind(error: BaseException) -> Iterator[BaseException]:
    """What was being dealt with when Prefect was called in vain, the latest first."""
    seen = {id(error)}
    before = error.__cause__ or error.__context__
    while before is not None and id(before) not in seen:
        yield before
        seen.add(id(before))
        before = before.__cause__ or before.__context__


def _gone(error: Exception) -> str:
    return f"Prefect went away: {without_secrets(str(error))}"


def _why_not(error: Exception) -> str:
    """Why Prefect can't be used, in words that say what to do."""
    from flows.servers import asking
    from flows.servers.passwords import prefect_password
    from flows.servers.state import named_prefect
    from flows.servers.versions import does_not_fit

    server, password = (named_prefect() or "").rstrip("/").removesuffix("/api"), prefect_password()
    if server and (trouble := asking.prefect_trouble(server, password)) is not None:
        do = asking.do_about(trouble, password)
        return f"Prefect at {without_secrets(server)} {trouble}; {do}, or unset PREFECT_API_URL"
    version = asking.prefect_version(server, password) if server else None
    if version is not None and (said := does_not_fit("prefect", version)) is not None:
        return f"Prefect at {without_secrets(server)}: {said}; start one of such a version, or unset PREFECT_API_URL"
    return f"Prefect can't be reached: {without_secrets(str(error))}; start its server, or unset PREFECT_API_URL"
