"""A Prefect server that is gone for minutes, while a flow run trains and others are to come."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.servers import eventually
from tests.e2e.steered import LIMIT, Steered
from tests.e2e.up import TINY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
AWAY_S = 150
"""More than twice what Prefect's own runner has patience for, and its listener for Cancel."""


def test_what_trains_goes_on_and_what_serves_hears_of_cancel_and_of_new_runs_when_it_is_back(tmp_path: Path) -> None:
    up = Steered(tmp_path, ALIGN_SLOTS=str(tmp_path / "slots"))
    try:
        serving = up.pids()["serving"]
        flow_run = up.trigger(
            "align", recipe=TINY, until="sft", overrides={"sft.epochs": 2000}, execution={"slot": "one"}
        )
        up.until_it_trains()
        (trainer,) = up.trainers()
        up.kill("prefect")
        time.sleep(AWAY_S)
        assert up.shop.align("up").status == 0
        assert up.pids()["serving"] == serving and [one.pid for one in up.trainers()] == [trainer.pid]
        eventually(lambda: up.api.call(LIMIT)["active_slots"] == 1, 120)  # once the run hears of it again
        up.cancel(flow_run)
        up.until(flow_run, "Cancelled")
        assert not up.trainers() and up.shop.checkpoints("sft")
        eventually(lambda: up.api.call(LIMIT)["active_slots"] == 0, 600)
        up.until(up.trigger("align", recipe=TINY, until="base"), "Completed")
    finally:
        up.end()
