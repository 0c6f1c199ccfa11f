"""The server that Prefect starts for a run without one: it must not outlive the run, however the run ends."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

from prefect.settings import get_current_settings

GUARD = "read pid; cat > /dev/null; kill $pid 2> /dev/null"
"""Reads a process id, waits until its input closes, which the kernel sees to when we die, and ends the process."""


def keep_from_ctrl_c() -> None:
    """Have each one started in a session of its own.

    A terminal sends Ctrl-C to every process of ours: a server that ended of it could not be told how the run did.
    """
    if get_current_settings().api.url:
        return  # there will be none, and what follows takes a second
    from prefect.server.api import server

    own_session = partial(subprocess.Popen, start_new_session=True)
    vars(server)["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": own_session})


def guard_ephemeral_servers() -> None:
    """Prefect ends its server in an exit handler, which `kill -9` never runs; a guard of each one does it then."""
    module = sys.modules.get("prefect.server.api.server")
    if module is None:
        return  # nobody has started one, and its import takes longer than to refuse what is wrong in a form
    for server in module.SubprocessASGIServer._instances.values():
        process = server.server_process
        if process is not None and not hasattr(server, "guard"):
            guard = subprocess.Popen(
                ["sh", "-c", GUARD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                text=True, start_new_session=True,
            )  # fmt: skip
            assert guard.stdin is not None
            guard.stdin.write(f"{process.pid}\n")
            guard.stdin.flush()
            server.guard = guard  # holds the pipe open for as long as we live
