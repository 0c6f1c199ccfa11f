"""A served flow run whose process was killed, with nobody left to say so: Prefect shows it as Crashed, by our rule."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.e2e.servers import eventually
from tests.e2e.up import Up, of_up

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_it_is_crashed_after_some_missing_heartbeats(tmp_path):
    up = Up(tmp_path, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")  # as often as Prefect lets it
    try:
        flow_run = up.trigger("align", recipe="pipelines/tiny.yaml", until="sft", overrides={"sft.epochs": 3000})
        eventually(lambda: up.shop.checkpoints("sft"), 240)
        serving = psutil.Process(up.pids()["serving"])
        for process in [serving, *serving.children()]:
            os.kill(process.pid, signal.SIGKILL)
        assert up.flow_run(flow_run)["state_name"] == "Running"
        eventually(lambda: up.flow_run(flow_run)["state_name"] == "Crashed", 300)
        assert "no sign of life for 120 seconds" in up.flow_run(flow_run)["state"]["message"]
    finally:
        up.shop.align("down")
    assert of_up(up.shop) == []
