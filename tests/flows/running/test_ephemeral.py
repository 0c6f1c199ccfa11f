"""The server that Prefect starts for a run without one."""

from __future__ import annotations

import os
import subprocess

import pytest
from prefect.server.api import server
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.running.ephemeral import keep_from_ctrl_c
from tests.e2e.servers import free_port


def test_it_does_not_hear_a_terminals_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "subprocess", subprocess)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        keep_from_ctrl_c()
    process = server.SubprocessASGIServer(free_port())._run_uvicorn_command()
    try:
        assert os.getsid(process.pid) == process.pid and os.getpgid(process.pid) != os.getpgid(0)
    finally:
        process.kill()
        process.wait()
