"""The installed `align` command, in processes of its own, on the two-layer recipe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.prefect_server import Prefect

ROOT = Path(__file__).parents[2]
ALIGN = Path(sys.executable).parent / "align"


@dataclass
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def statuses(self) -> dict[str, str]:
        return {stage["name"]: stage["status"] for stage in self.json["stages"]}

    def stage(self, name: str) -> dict[str, Any]:
        return next(stage for stage in self.json["stages"] if stage["name"] == name)


class Shop:
    """One ALIGN_HOME and one Prefect home, and the command that works there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "align"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))},
            "ALIGN_HOME": str(self.home),
            "PREFECT_HOME": str(folder / "prefect"),
            "HOME": str(folder),
        }

    def checkpoints(self, uses: str) -> list[Path]:
        """Complete ones of a stage at work."""
        drafts = (self.home / "drafts").glob(f"{uses}-*")
        found = [path for draft in drafts for path in (draft / "work").glob("checkpoint-*")]
        return [path for path in found if (path / "manifest.json").exists()]

    def start(self, *words: str, cwd: Path = ROOT, group: bool = False, **environment: str) -> subprocess.Popen[str]:
        """The command, in this home's environment but for what is given; an empty variable is none.

        In a process `group` of its own, as a shell starts it on a terminal, if so wished.
        """
        # A shell that starts tests in the background lets them ignore Ctrl-C; a user's terminal does not.
        return subprocess.Popen(
            [str(ALIGN), *words],
            cwd=cwd,
            env={name: value for name, value in {**self.environment, **environment}.items() if value},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            process_group=0 if group else None,
        )

    def align(self, *words: str, cwd: Path = ROOT, given: str = "", **environment: str) -> Answer:
        process = self.start(*words, cwd=cwd, **environment)
        out, err = process.communicate(given, timeout=1800)
        assert "Traceback" not in err, err
        return Answer(process.returncode, out, err)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def first(shop: Shop, prefect: Prefect) -> Answer:
    """The first run of the tiny recipe, without any server; every later command has one, and doesn't wait for it."""
    answer = shop.align("run", "pipelines/tiny.yaml", "--json", PREFECT_API_URL="")
    assert answer.status == 0, answer.err
    return answer


@pytest.fixture(scope="session")
def again(first: Answer, shop: Shop) -> Answer:
    """The same command once more."""
    answer = shop.align("run", "pipelines/tiny.yaml", "--json")
    assert answer.status == 0, answer.err
    return answer


@pytest.fixture(scope="session")
def another_beta(first: Answer, shop: Shop) -> Answer:
    """A run in which DPO and what follows from it is made."""
    answer = shop.align("run", "pipelines/tiny.yaml", "dpo.beta=0.7", "--json")
    assert answer.status == 0, answer.err
    return answer


@pytest.fixture(scope="session")
def prefect(shop: Shop) -> Iterator[Prefect]:
    server = Prefect(dict(shop.environment))
    server.start()
    shop.environment["PREFECT_API_URL"] = server.api
    yield server
    server.stop()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the recipes and their data in another folder, to be changed."""
    shutil.copytree(ROOT / "pipelines", tmp_path / "elsewhere" / "pipelines")
    return tmp_path / "elsewhere"
