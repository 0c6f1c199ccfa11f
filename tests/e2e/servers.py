"""Real servers in processes of their own, to be stopped as a crash stops them, and started again on the same port."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any


class Server(ABC):
    """`command` serves on `port`, and is up once it says 200 at `health`."""

    def __init__(self, health: str) -> None:
        self.port, self.health = free_port(), health
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """In which it runs."""

    def start(self) -> None:
        """Returns once it answers."""
        self.process = subprocess.Popen(
            self.command(), env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 300  # on a machine that trains meanwhile; seconds on any other
        while not answers(self.port, self.health):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.3)

    def stop(self) -> None:
        """With all its processes, and without a word."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int, path: str = "/") -> bool:
    """Whether something there says 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def eventually(found: Callable[[], Any], seconds: float) -> Any:
    """What `found` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answer := found():
                return answer
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.3)
