"""`align doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from artifacts.errors import AlignError
from flows.addresses import without_secrets
from flows.servers.findings import BROKEN, OK, WARNING, Finding
from flows.servers.home_checks import databases_found, home_found, locks_found, lost_runs_found, slots_found
from flows.servers.machine_checks import devices_found, disk_found, memory_found, versions_found
from flows.servers.server_checks import named_found, ports_found, up_found

CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    versions_found, home_found, disk_found, memory_found, devices_found, databases_found, up_found, named_found,
    ports_found, locks_found, slots_found, lost_runs_found,
)  # fmt: skip


def doctor(home: Path, *, as_json: bool) -> int:
    """Look at everything, change nothing; 1 if something is broken, else 0."""
    findings: list[Finding] = []
    for check in CHECKS:
        for finding in _safely(check, home):
            findings.append(finding)
            if not as_json:
                print(finding.lines(), flush=True)
    broken, warnings = (sum(finding.level == level for finding in findings) for level in (BROKEN, WARNING))
    if as_json:
        found = [finding.as_dict() for finding in findings]
        print(json.dumps({"broken": broken, "warnings": warnings, "findings": found}))
    else:
        well = sum(finding.level == OK for finding in findings)
        print(f"{well} well, {warnings} to know of, {broken} broken", file=sys.stderr)
    return 1 if broken else 0


def _safely(check: Callable[[Path], Iterator[Finding]], home: Path) -> Iterator[Finding]:
    """What a check finds; one that can't be made is a finding too, and keeps no other from being made."""
    try:
        yield from check(home)
    except Exception as error:  # whatever it is: a library that can't be imported, a driver that gives up
        name = check.__name__.removesuffix("_found").replace("_", " ")
        yield Finding(name, BROKEN, f"can't be looked at: {_said(error)}", "see to what this says")


def _said(error: Exception) -> str:
    """What an error says, after its kind where it is not one of ours: some say no more than a name."""
    said = without_secrets(str(error))
    return said if isinstance(error, AlignError) else f"{type(error).__name__}: {said}"
