"""Ports: which are free, and who has the others."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from artifacts.errors import UserError
from flows.addresses import without_secrets

LISTENING = "0A"
TRIED = 100


def free(host: str, port: int) -> bool:
    """Whether a server could listen there; raises UserError if `host` is no address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno == errno.EACCES:
            raise UserError(f"port {port}: wanted one that you may listen on, such as any above 1023") from error
        raise UserError(f"--host: wanted an address of this machine, got {host!r} ({error.strerror})") from error
    return True


def next_free(host: str, port: int, taken: Collection[int] = ()) -> int:
    """This port if it is free and not in `taken`, or else the next that is."""
    for candidate in range(port, port + TRIED):
        if candidate not in taken and free(host, candidate):
            return candidate
    raise UserError(f"none of the ports {port} to {port + TRIED - 1} is free; name one that is")


def listener(port: int) -> str | None:
    """Who listens on a port of this machine, such as `process 12 (python -m http.server)`; None if it can't be told."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for folder in Path("/proc").iterdir() if sockets else ():
        with suppress(OSError):  # gone, or somebody else's
            if folder.name.isdecimal() and any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                said = without_secrets(" ".join([Path(words[0]).name, *words[1:]]).strip())
                return f"process {folder.name} ({said[:80]})"
    return "another user's process" if sockets and os.geteuid() != 0 else None


def _inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found
