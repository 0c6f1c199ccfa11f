"""The server that Prefect starts for a run without one: it must not outlive the run, however the run ends."""

from __future__ import annotations

import subprocess

GUARD = "read pid; cat > /dev/null; kill $pid 2> /dev/null"
"""Reads a process id, waits until its input closes, which the kernel sees to when we die, and ends the process."""


def guard_ephemeral_servers() -> None:
    """Prefect ends its server in an exit handler, which `kill -9` never runs; a guard of each one does it then."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in SubprocessASGIServer._instances.values():
        process = server.server_process
        if process is not None and not hasattr(server, "guard"):
            guard = subprocess.Popen(
                ["sh", "-c", GUARD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                text=True, start_new_session=True,
            )  # fmt: skip
            assert guard.stdin is not None
            guard.stdin.write(f"{process.pid}\n")
            guard.stdin.flush()
            server.guard = guard  # type: ignore[attr-defined]  # holds the pipe open for as long as we live
