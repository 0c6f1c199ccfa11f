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
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from artifacts.errors import ServerError
from flows.running.launch import GRACE
from flows.seconds import seconds
from flows.servers.processes import Started, children, end_asked, tell
from tasks.parallel.launching import die_with_parent

TRAINER_S = 20.0
"""How long trainers may take to save, unless the environment says otherwise. Prefect kills what it cancels after 30."""
TELLING_S = 30.0
"""How long a flow run may take beyond that, to say how it ended. Then come ENDING_S for the worker: whoever stops a
container waits for all three (deploy/compose.yaml)."""
ENDING_S = 10.0
POLL_S = 0.2


def supervise(command: Sequence[str]) -> int:
    """Run a worker to its end; gives its exit status, or 0 where it was asked to end."""
    asked, saving_s = threading.Event(), seconds(GRACE, TRAINER_S) + TELLING_S
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
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
    _end_flow_runs(worker, saving_s)
    if not end_asked([worker], ENDING_S):
        process.kill()
    process.wait()
    return 0


def _end_flow_runs(worker: Started, saving_s: float) -> None:
    """Ask every one to end, those too that the worker takes up meanwhile, and wait for them."""
    deadline, asked = time.monotonic() + saving_s, set[int]()
    while (there := children(worker)) and time.monotonic() < deadline:
        for one in there:
            if one.pid not in asked:
                tell(one.pid, one.start, signal.SIGTERM)
                asked.add(one.pid)
        time.sleep(POLL_S)


def tell_of_lost() -> None:
    """A flow run that was lost with the machine would else be `Running` for ever, and keep its place in the pool."""
    import flows.before_prefect  # noqa: F401
    from flows.home import align_home
    from flows.running.lost import tell_of_all
    from flows.servers.crash_rule import wait_for_prefect

    with suppress(ServerError):  # the worker says it better
        wait_for_prefect()
        tell_of_all(align_home(), partial(print, file=sys.stderr))


if __name__ == "__main__":
    tell_of_lost()
    sys.exit(supervise([sys.executable, "-m", "flows.deployments.patient_prefect", "worker", "start", *sys.argv[1:]]))
