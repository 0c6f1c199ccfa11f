"""What `deploy/compose.yaml` starts, without containers: its commands and variables, on this machine's own addresses.

A service's `/data` is a folder of its own, `/slots` is one for all, the image's `/opt/alignflow` is the clone, and its
port is a free one.
PostgreSQL is the system's; moto's server stands in for the object store.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil

from tests.deploy.compose_file import DEPLOY, answers, compose
from tests.e2e.servers import answers as answers_at
from tests.e2e.servers import free_port

ROOT = DEPLOY.parent
PATIENCE_S = 1800
"""Some minutes are enough, but for a machine that trains meanwhile."""
ENVIRONMENT = {**answers(), "PREFECT_AUTH_STRING": "team:p@ss w:rd", "MLFLOW_ADMIN_PASSWORD": "longer-than-12"}
PORTS = {"postgres": 5432, "s3": 7070, "mlflow": 5000, "prefect": 4200}
WORKER_PORT = 8080
MOTO = "/moto-api/"
"""What moto's server answers once it is up."""


def eventually(found: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """What `found` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if answer := found():
                return answer
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(1)


class Native:
    """The services of compose.yaml as processes, everything that they write under `folder`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.services = folder, compose({**ENVIRONMENT, **environment})["services"]
        self.databases = compose(ENVIRONMENT)["configs"]["databases"]["content"]
        self.ports = {name: free_port() for name in PORTS}
        self.worker_ports: dict[Path, int] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name, words in {"python": "", "prefect": "-m prefect", "mlflow": "-m mlflow"}.items():
            (self.bin / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            (self.bin / name).chmod(0o755)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    def here(self, text: str, home: Path) -> str:
        """A word of compose.yaml with the addresses and folders of this machine."""
        for name, port in PORTS.items():
            text = text.replace(f"http://{name}:{port}", f"http://127.0.0.1:{self.ports[name]}")
            text = text.replace(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{self.ports[name]}")
            text = re.sub(rf"^--port={port}$", f"--port={self.ports[name]}", text)
        if home in self.worker_ports:
            text = text.replace(f"http://127.0.0.1:{WORKER_PORT}", f"http://127.0.0.1:{self.worker_ports[home]}")
        text = re.sub(r"^/data|^/tmp", str(home), text).replace("--host=0.0.0.0", "--host=127.0.0.1")
        text = re.sub("^/slots", str(self.folder / "slots"), text)
        return re.sub("^/opt/alignflow", str(ROOT), text)

    def environment(self, service: str, home: Path, **more: str) -> dict[str, str]:
        """Of a service: what compose.yaml gives it, and no other variable of ours or of whoever runs the test."""
        given = {name: self.here(value, home) for name, value in self.services[service].get("environment", {}).items()}
        if "PGHOST" in given or service == "postgres":
            given |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"])}
        if "PREFECT_WORKER_WEBSERVER_PORT" in given:
            given["PREFECT_WORKER_WEBSERVER_PORT"] = str(self.worker_ports.setdefault(home, free_port()))
        system = {
            "PATH": f"{self.bin}:{_postgres_bin()}:{os.environ['PATH']}",
            "HOME": str(home),
            "PYTHONUNBUFFERED": "1",
        }
        return {**system, **given, **more}

    def start(self, service: str, name: str | None = None, **more: str) -> subprocess.Popen[bytes]:
        """A service, in a home of its own, which is empty when it is first started; its log lies beside that."""
        name = name or service
        home = self.folder / name
        home.mkdir(exist_ok=True)
        command = [self.here(word, home) for word in self.services[service]["command"]]
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(service, home, **more), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self.running[name]

    def once(self, service: str) -> None:
        """A service that does something and ends."""
        assert self.start(service).wait(PATIENCE_S) == 0, self.log(service).read_text()[-3000:]

    def up(self) -> None:
        """All but the workers, each when compose.yaml would start it."""
        self._postgres()
        self._store()
        self.once("bucket")
        for service in ("mlflow", "prefect"):
            self.start(service)
        for service in ("mlflow", "prefect"):
            self.wait(service)
        self.once("deployments")

    def wait(self, service: str, name: str | None = None) -> None:
        """Until its own check in compose.yaml finds it healthy."""
        name = name or service
        home = self.folder / name
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"

        def healthy() -> bool:
            assert self.running[name].poll() is None, self.log(name).read_text()[-3000:]
            command, environment = [self.here(word, home) for word in words], self.environment(service, home)
            return subprocess.run(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0

        eventually(healthy, f"{name} is healthy")

    def sql(self, *words: str | Path, **more: Any) -> bytes:
        """What one of PostgreSQL's programs prints, asked by the user of the databases."""
        given = self.environment("mlflow", self.folder / "mlflow")
        return subprocess.run([_postgres_bin() / words[0], *words[1:]], env=given, check=True, capture_output=True,
                              timeout=PATIENCE_S, **more).stdout  # fmt: skip

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def trainers(self, name: str) -> list[psutil.Process]:
        """The processes that train for a worker."""
        family = psutil.Process(self.running[name].pid).children(recursive=True)
        return [each for each in family if "tasks" in each.cmdline()]

    def stop(self, name: str) -> int:
        """As `docker compose stop` does it: asked to end, with the time that a worker has; gives the exit status."""
        self.running[name].terminate()
        grace_s = float(self.services["worker"]["stop_grace_period"].removesuffix("s"))
        status = self.running[name].wait(grace_s)
        del self.running[name]
        return status

    def kill(self, name: str) -> None:
        """`kill -9` of a service and of what it started, but for trainers, which see to that themselves."""
        trainers = self.trainers(name)
        leader = psutil.Process(self.running.pop(name).pid)
        for process in [leader, *(each for each in leader.children(recursive=True) if each not in trainers)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def down(self) -> None:
        for process in reversed(self.running.values()):
            family = []  # some have sessions of their own
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
        self.running.clear()
        shutil.rmtree(self.cluster, ignore_errors=True)

    def call(self, path: str, body: Mapping[str, Any] | None = None, method: str | None = None) -> Any:
        """What Prefect's API answers to somebody who has the auth string."""
        data = None if body is None else json.dumps(body).encode()
        token = base64.b64encode(ENVIRONMENT["PREFECT_AUTH_STRING"].encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        request = urllib.request.Request(f"{self.api}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "null")
        except HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read()[:500]!r}") from error

    def _postgres(self) -> None:
        """A cluster of the user and the databases that the image of PostgreSQL would make; never as root."""
        self.cluster = Path(tempfile.mkdtemp(prefix="align-postgres-"))
        bin, service = _postgres_bin(), self.services["postgres"]["environment"]
        who: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        password = self.cluster / "password"
        password.write_text(service["POSTGRES_PASSWORD"])
        if who:
            for path in (self.cluster, password):
                shutil.chown(path, "postgres", "postgres")
        data, user = self.cluster / "data", service["POSTGRES_USER"]
        quiet: dict[str, Any] = {"cwd": self.cluster, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **who}
        subprocess.run(
            [bin / "initdb", "-D", data, "-U", user, "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8"],
            check=True, **quiet,
        )  # fmt: skip
        self.start_postgres(data, quiet)
        self.wait("postgres")
        for sql in (f"CREATE DATABASE {service['POSTGRES_DB']};", self.databases):
            self.sql("psql", "-d", "postgres", "-c", sql)

    def start_postgres(self, data: Path, quiet: Mapping[str, Any]) -> None:
        words = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", self.cluster]
        with self.log("postgres").open("ab") as log:
            self.running["postgres"] = subprocess.Popen(
                [_postgres_bin() / "postgres", "-D", data, "-p", str(self.ports["postgres"]), *words],
                start_new_session=True, **{**quiet, "stdout": log, "stderr": log},
            )  # fmt: skip

    def _store(self) -> None:
        words = [sys.executable, "-m", "moto.server", "-p", str(self.ports["s3"])]
        self.running["s3"] = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        eventually(lambda: answers_at(self.ports["s3"], MOTO), "the object store")


def _postgres_bin() -> Path:
    """Where Debian, or another system, keeps the server's programs; the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    elsewhere = shutil.which("initdb")
    assert found or elsewhere, "PostgreSQL is not here: apt-get install postgresql"
    return found[-1].parent if found else Path(str(elsewhere)).resolve().parent
