"""A stage that another machine is making is waited for; one that it left is taken over. A real MLflow database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.errors import InterruptedStage
from artifacts.store import Store
from flows.running.watch import Watcher
from flows.tracking import pulse
from flows.tracking.courier import Courier
from flows.tracking.elsewhere import fetch
from flows.tracking.mlflow_server import KEY_TAG, MlflowServer
from flows.tracking.pulse import PULSE_TAG, Pulse, claimed, first_beat
from flows.tracking.tracked_stage import TrackedStage

KEY = "k" * 64


class Theirs:
    """A run of the key on a server that several machines use, with a checkpoint, as another machine began it."""

    def __init__(self, server: MlflowServer, folder: Path) -> None:
        self.server = server
        self.run = self.server.make("recipe", "sft", {KEY_TAG: KEY, PULSE_TAG: "rack-7 a1b2c3d4 4"})
        for name in ("optimizer.pt", "manifest.json"):
            (folder / name).write_text("{}")
            self.server.client.log_artifact(self.run, str(folder / name), "checkpoints/checkpoint-8")
        self.said: list[str] = []
        self.waited: list[str] = []

    def fetch(self, store: Store) -> bool:
        return fetch(self.server, store, "sft", KEY, self.said.append, self.waited.append)

    @property
    def pulse(self) -> str:
        return str(self.server.client.get_run(self.run).data.tags[PULSE_TAG])


@pytest.fixture
def theirs(shared_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Theirs:
    monkeypatch.setattr(pulse, "POLL_S", 0.05)
    monkeypatch.setattr(pulse, "BEAT_S", 0.2)
    monkeypatch.setattr(pulse, "WATCHED_S", 5.0)
    return Theirs(shared_server, tmp_path)


@pytest.fixture
def at_work(theirs: Theirs) -> Iterator[threading.Event]:
    """Another machine's pulse for the run, until the event is set."""
    over = threading.Event()

    def beat() -> None:
        number = 4
        while not over.wait(0.2):
            number += 1
            theirs.server.client.set_tag(theirs.run, PULSE_TAG, f"rack-7 a1b2c3d4 {number}")

    thread = threading.Thread(target=beat)
    thread.start()
    yield over
    over.set()
    thread.join()


def test_who_makes_the_same_is_waited_for_until_it_ends(store: Store, theirs: Theirs, at_work: threading.Event) -> None:
    def leave() -> None:
        at_work.set()
        theirs.server.client.set_terminated(theirs.run, "KILLED")

    began = time.monotonic()
    threading.Timer(3, leave).start()
    assert not theirs.fetch(store)
    assert time.monotonic() - began > 2.5
    assert set(theirs.waited) == {
        f"rack-7, which works on the same stage: run {theirs.run} on {theirs.server.shown}"
    }  # and was told so only once, by Waiting
    assert theirs.said == [f"goes on from checkpoint-8, fetched from {theirs.server.shown}"]


def test_a_run_that_nobody_works_on_any_more_is_taken_over(store: Store, theirs: Theirs) -> None:
    assert not theirs.fetch(store)
    assert theirs.waited and theirs.said == [f"goes on from checkpoint-8, fetched from {theirs.server.shown}"]


@pytest.mark.parametrize("what", ["ours", "of no pulse", "killed"])
def test_nobody_waits_for_what_can_be_no_other_machines(store: Store, theirs: Theirs, what: str) -> None:
    client = theirs.server.client
    if what == "ours":
        client.set_tag(theirs.run, PULSE_TAG, first_beat(theirs.server.home))
    elif what == "killed":
        client.set_terminated(theirs.run, "KILLED")
    else:
        client.delete_tag(theirs.run, PULSE_TAG)
    theirs.fetch(store)
    assert theirs.waited == [] and theirs.said


def test_who_waits_can_be_ended(store: Store, theirs: Theirs, at_work: threading.Event) -> None:
    def ended(who: str) -> None:
        raise InterruptedStage("ended as asked")

    with pytest.raises(InterruptedStage):
        fetch(theirs.server, store, "sft", KEY, theirs.said.append, ended)


def test_of_two_who_would_go_on_with_what_was_left_one_does(store: Store, theirs: Theirs, tmp_path: Path) -> None:
    """Who comes second waits, since the first's pulse is in the run by then."""
    assert claimed(theirs.server, theirs.run)
    other = MlflowServer(tmp_path / "theirs")
    other.home, other.is_own, other.name = tmp_path / "another home", False, "theirs"
    waited: list[str] = []

    def told(who: str) -> None:
        waited.append(who)
        theirs.server.client.set_terminated(theirs.run, "KILLED")

    assert not fetch(other, store, "sft", KEY, theirs.said.append, told)
    assert waited and theirs.said == [f"goes on from checkpoint-8, fetched from {other.shown}"]


def seen(theirs: Theirs, times: int) -> None:
    """Wait for so many different beats of ours."""
    ours, found = first_beat(theirs.server.home).rpartition(" ")[0], set()
    deadline = time.monotonic() + 30
    while len(found) < times:
        assert time.monotonic() < deadline
        found |= {theirs.pulse} if theirs.pulse.startswith(ours) else set()


def test_the_run_of_a_stage_beats_until_all_of_it_is_there(store: Store, theirs: Theirs, monkeypatch) -> None:
    stage, sent = TrackedStage(store, "sft", KEY), threading.Event()
    stage.sent("theirs").made(theirs.run)
    assert claimed(theirs.server, theirs.run)
    monkeypatch.setattr(TrackedStage, "facts", {"run_id": "recipe-1"})
    monkeypatch.setattr(TrackedStage, "send", lambda *words: sent.is_set())
    courier = Courier(theirs.server, Watcher())
    courier.start()
    try:
        courier.making(stage)  # which may wait for a GPU
        seen(theirs, 2)
        courier.carry(stage, "RUNNING")
        seen(theirs, 2)
        courier.carry(stage, "FINISHED")  # and is large
        seen(theirs, 3)
        sent.set()
        deadline = time.monotonic() + 30
        while courier._at_work():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        last = theirs.pulse
        time.sleep(1)
        assert theirs.pulse == last
    finally:
        courier.finish(lambda: None, 5)


FACTS = {"run_id": "recipe-1", "experiment": "recipe", "name": "sft", "params": {}, "data": []}


def test_a_run_that_another_machine_goes_on_in_is_left_to_it(theirs: Theirs, store: Store, monkeypatch) -> None:
    """Who could not reach MLflow for a while, and so was taken for dead, has one of its own from then on."""
    monkeypatch.setattr(TrackedStage, "facts", FACTS)
    monkeypatch.setattr(TrackedStage, "_describe", lambda *words: None)
    stage = TrackedStage(store, "sft", KEY)
    sent = stage.sent("theirs")
    first = stage._open(theirs.server, sent, None)
    sent.add(["train/loss 1"])
    assert stage._open(theirs.server, sent, None) == first
    theirs.server.client.set_tag(first, PULSE_TAG, "rack-7 a1b2c3d4 1")
    beating = Pulse(theirs.server, lambda: [first])
    beating.over.set()
    beating.run()
    assert theirs.server.client.get_run(first).data.tags[PULSE_TAG] == "rack-7 a1b2c3d4 1"
    second = stage._open(theirs.server, sent, None)
    assert second != first and sent.points() == set()
    assert theirs.server.client.get_run(second).data.tags[PULSE_TAG] == first_beat(theirs.server.home)
    assert stage._open(theirs.server, sent, None) == second


def test_a_run_that_is_made_has_its_pulse_from_the_beginning(theirs: Theirs, store: Store, monkeypatch) -> None:
    monkeypatch.setattr(TrackedStage, "facts", FACTS)
    monkeypatch.setattr(TrackedStage, "_describe", lambda *words: None)
    stage = TrackedStage(store, "sft", "m" * 64)
    made = stage._open(theirs.server, stage.sent("theirs"), None)
    assert theirs.server.client.get_run(made).data.tags[PULSE_TAG] == first_beat(theirs.server.home)


def test_a_home_by_itself_has_no_pulse(empty_mlflow: Path) -> None:
    courier = Courier(MlflowServer(empty_mlflow), Watcher())
    courier.start()
    courier.finish(lambda: None, 5)
    assert isinstance(courier._pulse, Pulse) and courier._pulse.ident is None
