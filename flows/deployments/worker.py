"""`python -m flows.deployments.worker ...`: `prefect worker start ...` whose flow runs save before it ends.

By itself Prefect's worker kills the processes of its flow runs as soon as it is asked to end, and what they did since
the last checkpoint is lost. Here they are asked first, and the worker when they are gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from flows.running.launch import GRACE
from flows.servers.processes import Started, children, end_asked
from tasks.parallel.launching import die_with_parent

SAVING_S = 75.0
"""How long the flow runs may take. Whoever stops a container is to give it some seconds more (deploy/compose.yaml)."""
TRAINER_S = 60.0
"""How long their trainers may, unless the environment says otherwise."""
ENDING_S = 10.0
POLL_S = 0.2


def supervise(command: Sequence[str], saving_s: float = SAVING_S) -> int:
    """Run a worker to its end; gives its exit status, or 0 where it was asked to end."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    # In a session of its own, since Ctrl-C reaches all of a terminal's processes at once.
    environment = {GRACE: str(TRAINER_S), **os.environ}
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)
    worker = Started.of(process.pid)
    while process.poll() is None and not asked.wait(POLL_S):
        pass
    if not asked.is_set():
        return process.wait()
    print("asked to end: flow runs save and end first", file=sys.stderr, flush=True)
    end_asked(children(worker), saving_s)
    if not end_asked([worker], ENDING_S):
        process.kill()
    process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(supervise([sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]))
