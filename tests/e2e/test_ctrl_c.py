"""Ctrl-C as a terminal sends it: to every process of the command at once; and where Prefect is gone by then."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Shop
from tests.e2e.prefect_server import Prefect

pytestmark = pytest.mark.e2e
WORDS = ("run", "pipelines/tiny.yaml", "sft.epochs=500", "--until", "sft", "--quiet")


@pytest.fixture
def own(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def training(shop: Shop, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The run, once a stage of it trains."""
    deadline = time.monotonic() + 300
    while not any(file.read_text() for file in (shop.home / "drafts").glob("sft-*/metrics.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


def test_a_run_without_servers_ends_with_130(own: Shop) -> None:
    process = training(own, own.start(*WORDS, group=True, PREFECT_API_URL=""))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted; run the same command again to go on"


@pytest.mark.slow
def test_a_run_whose_prefect_is_gone_by_then_ends_with_130(own: Shop) -> None:
    server = Prefect(dict(own.environment))
    server.start()
    try:
        process = training(own, own.start(*WORDS, group=True, PREFECT_API_URL=server.api))
    finally:
        server.stop()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "interrupted, and Prefect went away: " in err and "run the same command again to go on" in err
