"""Cancel, Pause, Resume and Retry of Prefect's pages, on runs that `align up` serves."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import psutil
import pytest

from flows.servers.crash_rule import LEFT, TAKEN_FOR_DEAD
from tests.e2e.servers import eventually
from tests.e2e.steered import LIMIT, SECONDS, Steered, words_of
from tests.e2e.up import TINY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
LONG = 40
"""Epochs: long enough to be met while it trains."""
PAUSED, RETRIED, CANCELLED, IN_A_TERMINAL, ASLEEP = 3.0e-3, 2.0e-3, 1.0e-3, 2.5e-3, 3.5e-3
"""Learning rates, each of which is another training."""
FINISHED = [("base", "Cached"), ("instructions", "Cached"), ("sft", "Completed")]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    folder = tmp_path_factory.mktemp("steered")
    up = Steered(folder, ALIGN_SLOTS=str(folder / "slots"))
    yield up
    up.end()


@pytest.fixture(scope="module")
def undisturbed(up: Steered) -> Callable[[], dict[str, str]]:
    """Digests by key, of runs in another home that nobody steered; made when they are first asked for."""

    @cache
    def run() -> dict[str, str]:
        home = {"ALIGN_HOME": str(up.shop.home.parent / "undisturbed"), "PREFECT_API_URL": up.api.api}
        words = (f"sft.epochs={LONG}", f"sft.learning_rate={PAUSED}|{RETRIED}", "--until", "sft", "--json")
        process = up.shop.start("run", TINY, *words, **home)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        return {stage["key"]: stage["digest"] for stage in json.loads(out)["stages"]}

    return run


def train(up: Steered, learning_rate: float, **more: Any) -> str:
    overrides = {"sft.epochs": LONG, "sft.learning_rate": learning_rate}
    return up.trigger("align", recipe=TINY, until="sft", overrides=overrides, **more)


def as_undisturbed(up: Steered, flow_run: str, digests: dict[str, str]) -> bool:
    return all(digests[stage["key"]] == stage["digest"] for stage in up.record(flow_run)["stages"])


def test_pause_saves_and_frees_the_machine_and_resume_goes_on_with_what_is_finished_cached(up, undisturbed):
    flow_run = train(up, PAUSED, execution={"slot": "one"})
    up.until_it_trains()
    limit = eventually(lambda: up.api.call(LIMIT), 300)
    assert limit["limit"] == 1
    up.pause(flow_run)
    eventually(lambda: not up.trainers() and not up.flows(), 300)
    assert up.state(flow_run) == "Suspended" and up.shop.checkpoints("sft")
    eventually(lambda: dict(up.tasks(flow_run))["sft"] == "Suspended", 60)
    assert up.in_mlflow(flow_run)["sft"] == up.in_mlflow(flow_run)[""] == "KILLED"
    eventually(lambda: up.api.call(LIMIT)["active_slots"] == 0, 300)
    eventually(lambda: "Resume the flow run to go on" in up.logs(flow_run), 300)
    eventually(lambda: up.last_sign(flow_run) == LEFT, 60)  # else it would be missed, and Crashed
    assert up.shop.align("sync").status == 0  # which ends runs whose process is gone
    assert up.state(flow_run) == "Suspended"
    up.resume(flow_run)
    up.until(flow_run, "Completed")
    eventually(lambda: up.tasks(flow_run)[-3:] == FINISHED, 60)
    eventually(lambda: "sft: going on from checkpoint-" in up.logs(flow_run), 60)
    assert set(up.in_mlflow(flow_run).values()) == {"FINISHED"}
    assert as_undisturbed(up, flow_run, undisturbed())


def test_retry_of_a_run_that_failed_or_crashed_goes_on_as_the_same_run(up, undisturbed):
    flow_run = train(up, RETRIED)
    up.until_it_trains()
    before = up.record(flow_run)
    up.trainers()[0].kill()
    up.until(flow_run, "Failed")
    assert up.in_mlflow(flow_run)["sft"] == up.in_mlflow(flow_run)[""] == "FAILED"
    up.retry(flow_run)
    up.until_it_trains()
    assert up.in_mlflow(flow_run)[""] == "RUNNING"
    up.trainers()[0].parent().kill()
    up.until(flow_run, "Crashed")
    eventually(lambda: not up.trainers(), 60)
    up.retry(flow_run)
    up.until(flow_run, "Completed")
    after = up.record(flow_run)
    assert (after["run_id"], after["mlflow_run_id"]) == (before["run_id"], before["mlflow_run_id"])
    eventually(lambda: up.tasks(flow_run)[-3:] == FINISHED, 60)
    eventually(lambda: "sft: going on from checkpoint-" in up.logs(flow_run), 60)
    assert set(up.in_mlflow(flow_run).values()) == {"FINISHED"}
    assert as_undisturbed(up, flow_run, undisturbed())


def test_cancel_ends_the_trainer_within_seconds_and_leaves_a_checkpoint_to_go_on_from(up):
    flow_run = train(up, CANCELLED)
    up.until_it_trains()
    eventually(lambda: 0 < up.shown(flow_run).get("progress-sft", 0) < 100, 60)
    eventually(lambda: "sft: trains 16,384 of" in (said := up.logs(flow_run)) and " steps" in said, 60)
    pressed = time.monotonic()
    up.cancel(flow_run)
    eventually(lambda: not up.trainers(), 120)
    assert time.monotonic() - pressed < 20
    eventually(lambda: not up.flows(), 120)
    up.until(flow_run, "Cancelled")
    assert up.shop.checkpoints("sft")
    assert up.in_mlflow(flow_run)["sft"] == up.in_mlflow(flow_run)[""] == "KILLED"
    again = train(up, CANCELLED)
    up.until(again, "Completed")
    eventually(lambda: "sft: going on from checkpoint-" in up.logs(again), 60)
    assert up.in_mlflow(flow_run)["sft"] == "FINISHED"  # under the run that began it


def test_cancel_ends_what_a_terminal_started_as_ctrl_c_does(up):
    words = ("run", TINY, "--until", "sft", f"sft.epochs={LONG}", f"sft.learning_rate={IN_A_TERMINAL}")
    process = up.shop.start(*words)
    eventually(lambda: up.shop.checkpoints("sft"), SECONDS)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("tasks" in words_of(one) for one in started)
    flow_run = up.shop.align("runs", "--json").json[0]["flow_run_id"]
    up.cancel(flow_run)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "error: cancelled in Prefect's pages, after saving; run the same" in err, err
    assert up.state(flow_run) == "Cancelled" and up.shop.checkpoints("sft")
    assert not any(one.is_running() for one in started)
    assert up.in_mlflow(flow_run)["sft"] == up.in_mlflow(flow_run)[""] == "KILLED"
    again = up.shop.align(*words)
    assert again.status == 0 and "sft: going on from checkpoint-" in again.err


def test_a_run_that_was_taken_for_dead_while_its_machine_slept_says_that_it_lives(up):
    """What the automation for killed runs does is done by hand, in no time instead of four minutes."""
    flow_run = train(up, ASLEEP)
    up.until_it_trains()
    (trainer,) = up.trainers()
    up.press(flow_run, "CRASHED", "Crashed", message=f"{TAKEN_FOR_DEAD} 240 seconds: its process was killed")
    up.until(flow_run, "Running")
    assert [one.pid for one in up.trainers()] == [trainer.pid]
    up.until(flow_run, "Completed")
    eventually(lambda: "had taken this run for dead, and knows better now" in up.logs(flow_run), 60)
    assert up.in_mlflow(flow_run)[""] == "FINISHED"


def test_a_slot_that_is_taken_when_prefect_restarts_is_taken_afterwards(up):
    flow_run = up.trigger("align", recipe=TINY, until="sft", overrides={"sft.epochs": 2000}, execution={"slot": "one"})
    up.until_it_trains()
    eventually(lambda: up.api.call(LIMIT)["active_slots"] == 1, 60)
    up.kill("prefect")
    assert up.shop.align("up").status == 0
    limit = up.api.call(LIMIT)
    assert (limit["limit"], limit["active_slots"]) == (1, 1)
    up.cancel(flow_run)
    up.until(flow_run, "Cancelled")
    eventually(lambda: up.api.call(LIMIT)["active_slots"] == 0, 120)
    for draft in (up.shop.home / "drafts").glob("sft-*"):  # nobody goes on with it
        shutil.rmtree(draft)


def test_runs_with_the_same_slot_take_turns_and_say_for_whom_they_wait(up):
    words = ("run", TINY, "--exec", "slot=one", "--until", "sft", "--json")
    first = up.shop.start(*words, f"sft.epochs={LONG}", "sft.learning_rate=0.5e-3")
    eventually(lambda: up.shop.checkpoints("sft"), SECONDS)
    second = up.shop.start(*words, "sft.learning_rate=1.5e-3")
    said = [process.communicate(timeout=SECONDS)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "sft: waits for the slot 'one', held by run tiny-" in said[1]
    assert f"stage sft, process {first.pid}" in said[1] and "waits for the slot" not in said[0]
