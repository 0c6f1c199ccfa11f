"""A flow run that is retried or resumed is the same run, here and in MLflow; what Prefect is told of one that ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from prefect.states import Cancelling, Crashed, Pending, Running, Scheduled, State, Suspended

from artifacts.errors import InterruptedStage
from artifacts.store import Store
from flows.commands.planning import Wanted, plan_of
from flows.records import RunRecord, run_id_for
from flows.running.afresh import plan_to_run
from flows.running.execute import Waiting
from flows.running.lost import TOLD, _end, end_lost
from flows.running.watch import Watcher
from flows.tracking.mlflow_server import KEY_TAG, MlflowServer
from flows.tracking.tracked_run import HELD, Origin, TrackedRun
from flows.tracking.tracker import Tracker
from pipelines.plan import Plan
from tests.conftest import ROOT, chain

FLOW_RUN = "6fd2bcb5-5a1f-4c3a-a1b2-0f6d5f3c8f11"
HOLD = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def plan(store: Store, write_recipe, empty_mlflow: Path) -> Plan:
    return plan_of(Wanted(write_recipe(chain())), store)


def attempt(store: Store, plan: Plan, status: str, policy: str = "") -> str:
    """One process's part of the flow run."""
    run_id = run_id_for(store.home, plan.recipe.name, FLOW_RUN)
    tracker = Tracker.begin(store, plan, run_id, Origin(FLOW_RUN), Watcher(), offline=False)
    record = RunRecord.of(plan, run_id, FLOW_RUN, tracker, {})
    record.save(store.home)
    client = MlflowClient(f"sqlite:///{store.home / 'mlflow.db'}")
    assert tracker.mlflow_run_id is not None
    assert client.get_run(tracker.mlflow_run_id).info.status == "RUNNING"
    tracker.end(status, record.stages, policy=policy)
    os.close(HELD.pop((tracker.run.folder / "lock").resolve()))  # as the end of the process does
    run = client.get_run(tracker.mlflow_run_id)
    assert run.info.status == status
    assert run.data.params.get("policy", "") == (policy if status == "FINISHED" else "")
    return tracker.mlflow_run_id


def test_a_flow_run_that_goes_on_is_the_same_run_with_the_same_parent_in_mlflow(store: Store, plan: Plan) -> None:
    ends = {"KILLED": "", "FAILED": "sft", "FINISHED": "dpo"}  # what was evaluated before it failed, and after
    runs = [attempt(store, plan, status, policy) for status, policy in ends.items()]
    assert len(set(runs)) == 1 and len(list((store.home / "runs").glob("*.json"))) == 1


def test_another_flow_run_or_recipe_is_another_run(store: Store) -> None:
    RunRecord("tiny.yaml", "tiny-1", FLOW_RUN, None, []).save(store.home)
    assert run_id_for(store.home, "tiny", FLOW_RUN) == "tiny-1"
    assert run_id_for(store.home, "tiny", None) != "tiny-1"
    assert run_id_for(store.home, "tiny", FLOW_RUN.replace("6", "7")) != "tiny-1"
    assert run_id_for(store.home, "quickstart", FLOW_RUN).startswith("quickstart-")


def ends_in_mlflow(store: Store, run: TrackedRun) -> float:
    """In seconds since the epoch, when it is sent now."""
    server = MlflowServer.reach(store.home, "recipe")
    run.close(server, [])
    sent = run.sent(server.name).run_id
    assert sent is not None
    return float(server.client.get_run(sent).info.end_time / 1000)


def test_what_is_learned_of_a_run_later_does_not_move_its_end(store: Store, plan: Plan) -> None:
    run = TrackedRun(store.home, "recipe-1")
    run.begin(plan, Origin(FLOW_RUN), lambda: None)
    run.end("FINISHED")
    ended = time.time()
    time.sleep(0.1)
    run.end("FINISHED", **{TOLD: True})
    assert ends_in_mlflow(store, run) <= ended


def test_no_run_ends_before_it_began_though_the_clock_was_set_back(store: Store, plan: Plan) -> None:
    run = TrackedRun(store.home, "recipe-1")
    run.begin(plan, Origin(FLOW_RUN), lambda: None)
    began = datetime.now(UTC) + timedelta(hours=2)
    (run.folder / "facts.json").write_text(
        json.dumps({**(run.facts or {}), "started": began.isoformat(timespec="seconds")})
    )
    run.end("FINISHED")
    assert ends_in_mlflow(store, run) >= began.timestamp() - 1


def test_a_run_whose_process_is_gone_ended_when_it_last_said_something(store: Store, plan: Plan) -> None:
    run = TrackedRun(store.home, "recipe-1")
    run.begin(plan, Origin(FLOW_RUN), lambda: None)
    os.close(HELD.pop((run.folder / "lock").resolve()))  # as the end of the process does
    run.log.write_text("")
    before = int(time.time()) - 3600
    for path, at in ((run.folder / "facts.json", before - 10), (run.log, before)):
        os.utime(path, (at, at))
    assert end_lost(store.home, RunRecord("recipe.yaml", "recipe-1", FLOW_RUN, None, []))
    assert ends_in_mlflow(store, run) == before


@pytest.mark.parametrize("until", [None, "dpo@beta=0.2"])
def test_a_sweep_that_was_made_afresh_is_planned_again_as_it_was(store: Store, write_recipe, until: str | None) -> None:
    sweep = {"dpo.beta": [0.1, 0.2]}
    wanted = Wanted(write_recipe(chain()), sweep=sweep, until=until, refresh=("dpo",))
    made = plan_to_run(wanted, store, FLOW_RUN, offline=False)
    TrackedRun(store.home, "recipe-1").begin(made, Origin(FLOW_RUN), lambda: None)
    RunRecord(str(wanted.recipe), "recipe-1", FLOW_RUN, None, []).save(store.home)
    for each in made.stages:
        store.folder(each.uses, each.key).mkdir(parents=True)
    again = plan_to_run(wanted, store, FLOW_RUN, offline=False)
    assert [each.key for each in again.stages] == [each.key for each in made.stages]
    assert again["dpo@beta=0.2"].payload["refresh"] == 1


@pytest.fixture
def theirs(shared_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """The server of several machines."""
    monkeypatch.setattr(MlflowServer, "reach", lambda home: shared_server)
    return shared_server


def test_what_another_machine_made_afresh_is_not_taken_for_what_is_to_be_made(
    store: Store, write_recipe, theirs: MlflowServer
) -> None:
    wanted = Wanted(write_recipe(chain()), refresh=("sft",))
    first = plan_to_run(wanted, store, None, offline=False)
    run = theirs.make("recipe", "sft", {KEY_TAG: first["sft"].key})
    assert plan_to_run(wanted, store, None, offline=False)["sft"].key == first["sft"].key  # it is not finished there
    theirs.client.set_terminated(run, "FINISHED")
    second = plan_to_run(wanted, store, None, offline=False)
    assert (first["sft"].payload["refresh"], second["sft"].payload["refresh"]) == (1, 2)
    assert second["dpo"].payload["inputs"]["policy"] == second["sft"].key and "refresh" not in second["dpo"].payload
    assert plan_to_run(wanted, store, None, offline=True)["sft"].key == first["sft"].key


def test_tried_again_on_another_machine_a_flow_run_makes_nothing_afresh_once_more(
    store: Store, write_recipe, theirs: MlflowServer
) -> None:
    wanted = Wanted(write_recipe(chain()), refresh=("sft",))
    first = plan_to_run(wanted, store, FLOW_RUN, offline=False)
    run = theirs.make("recipe", "recipe-1", {"prefect.flow_run_id": FLOW_RUN, "align.kind": "pipeline"})
    payloads = {each.label: each.payload for each in first.stages}
    theirs.client.log_text(run, json.dumps(payloads), "plan.json")
    theirs.client.set_terminated(theirs.make("recipe", "sft", {KEY_TAG: first["sft"].key}), "FINISHED")
    assert plan_to_run(wanted, store, FLOW_RUN, offline=False)["sft"].key == first["sft"].key
    assert plan_to_run(wanted, store, FLOW_RUN[::-1], offline=False)["sft"].payload["refresh"] == 2


def test_it_waits_while_its_earlier_process_is_there_and_says_so(store: Store, plan: Plan) -> None:
    run = TrackedRun(store.home, "tiny-1")
    run.files.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.folder / "lock")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    said: list[float] = []

    def waiting() -> None:
        said.append(time.monotonic())
        process.kill()

    run.begin(plan, Origin(FLOW_RUN), waiting)
    process.communicate()
    assert said and run.live()


def test_two_parts_of_one_flow_run_in_one_process_do_not_wait_for_each_other(store: Store, plan: Plan) -> None:
    """Retraining looks first whether the champion fits, and then trains."""

    def waiting() -> None:
        raise AssertionError("it waits for itself")

    TrackedRun(store.home, "tiny-1").begin(plan, Origin(FLOW_RUN), waiting)
    TrackedRun(store.home, "tiny-1").end("FINISHED")
    assert TrackedRun(store.home, "tiny-1").live()  # its flow run is not over
    TrackedRun(store.home, "tiny-1").begin(plan, Origin(FLOW_RUN), waiting)
    assert TrackedRun(store.home, "tiny-1").live()


def test_a_stage_says_once_for_whom_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Hearing(Watcher):
        def line(self, label: str, text: str) -> None:
            said.append(f"{label}: {text}")

    waiting = Waiting("sft", Hearing())
    for who in ("process 1", "process 1", "process 2"):
        waiting(who)
    assert said == ["sft: waits for process 1", "sft: waits for process 2"]
    monkeypatch.setattr("flows.running.launch.ENDING._flag", True)
    with pytest.raises(InterruptedStage):
        waiting("process 2")


KILLED = {"status": "KILLED", "began": time.time() + 5}
LATER = {"status": "KILLED", "began": time.time() - 500}


@pytest.mark.parametrize(
    ("state", "facts", "wanted"),
    [
        (Running(), KILLED, "Crashed"), (Running(), {"status": "FAILED"}, "Failed"),
        (Running(), {**KILLED, "status": "FINISHED"}, "Completed"), (Running(), LATER, None),
        (Cancelling(), LATER, "Cancelled"), (Suspended(), KILLED, None), (Pending(), KILLED, None),
        (Scheduled(name="AwaitingRetry"), KILLED, None), (Crashed(), KILLED, None),
        (Crashed(), {**LATER, "status": "FINISHED"}, "Completed"),
    ],
)  # fmt: skip
def test_prefect_is_told_of_runs_that_only_their_process_could_end(
    state: State, facts: dict[str, object], wanted: str | None
) -> None:
    """Not of one that is suspended or about to be retried, nor of a later attempt."""
    found = _end(state, facts)
    assert (found.name if found else None) == wanted
