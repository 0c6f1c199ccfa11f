"""What served flow runs may read, by the environment that the process which serves them was started with."""

from __future__ import annotations

from pathlib import Path

from flows.servers.state import SERVING, Servers


def reads_only(servers: Servers) -> str | None:
    """What runs are kept to, where that leaves out the folder in which their recipes are looked up; else None."""
    if not servers.alive(SERVING):
        return None
    from pipelines.allowed import leads_into, roots_of

    roots = roots_of(servers.processes[SERVING].variables())
    if leads_into(Path(servers.folder), roots):
        return None
    return f"served runs read only what is in {' or '.join(map(str, roots))}"
