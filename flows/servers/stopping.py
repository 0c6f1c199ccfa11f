"""`align down`: what `align up` started is ended, with all that it started in turn, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.servers.processes import children, end_asked, end_marked, marked
from flows.servers.starting import GRACE_S, alone
from flows.servers.state import ROLES, SERVING, Servers


@dataclass(frozen=True)
class Ended:
    """What there was to end."""

    roles: list[str]
    processes: int
    killed: int
    """Of the processes, those that did not end when asked."""


def down(home: Path) -> Ended:
    """End them: flow runs that are being served first, while there are servers to which they can say how they ended."""
    if Servers.load(home) is None:
        return Ended([], 0, 0)
    with alone(home):
        servers = Servers.load(home)
        if servers is None:
            return Ended([], 0, 0)
        there = len(marked(servers.mark()))
        roles = [role for role in ROLES if servers.alive(role)]
        servers = servers.having(home, ready=False)  # no run begins to use what is going away
        if SERVING in servers.processes:
            end_asked(children(servers.processes[SERVING]), GRACE_S)
        killed = 0
        for group in ([SERVING], [role for role in ROLES if role != SERVING]):
            first = [servers.processes[role] for role in group if role in servers.processes]
            killed += end_marked([servers.mark(role) for role in group], first, GRACE_S)
        servers.having(home, processes={})
    return Ended(roles, there, killed)
