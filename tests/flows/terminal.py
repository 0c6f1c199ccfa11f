"""The command on a terminal of a given width, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]


def on_terminal(*words: str, columns: int = 80, **environment: str) -> str:
    """What `align` writes on a terminal, line ends as they are in text; standard error goes there too."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**env, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    found = b""
    try:
        while more := os.read(ours, 65536):
            found += more
    except OSError:  # how a terminal ends whose last writer is gone
        pass
    process.wait()
    os.close(ours)
    return found.decode().replace("\r\n", "\n")
