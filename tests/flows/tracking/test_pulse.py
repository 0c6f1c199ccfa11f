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
from flows.tracking.pulse import PULSE_TAG, Pulse, maker_of
from flows.tracking.tracked_stage import TrackedStage
from tests.flows.shared_server import shared_server

KEY = "k" * 64


class Theirs:
    """A run of the key on a server that several machines use, with a checkpoint, as another machine began it."""

    def __init__(self, folder: Path) -> None:
        self.server = shared_server(folder)
        self.run = self.server.make("recipe", "sft", {KEY_TAG: KEY, PULSE_TAG: "rack-7:/data/align 4"})
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
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Theirs:
    monkeypatch.setattr(pulse, "POLL_S", 0.05)
    monkeypatch.setattr(pulse, "BEAT_S", 0.2)
    monkeypatch.setattr(pulse, "WATCHED_S", 2.0)
    return Theirs(tmp_path)


@pytest.fixture
def at_work(theirs: Theirs) -> Iterator[threading.Event]:
    """Another machine's pulse for the run, until the event is set."""
    over = threading.Event()

    def beat() -> None:
        number = 4
        while not over.wait(0.2):
            number += 1
            theirs.server.client.set_tag(theirs.run, PULSE_TAG, f"rack-7:/data/align {number}")

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
        client.set_tag(theirs.run, PULSE_TAG, f"{maker_of(theirs.server.home)} 7")
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


def test_the_run_of_a_stage_beats_while_it_is_made_and_no_longer(store: Store, theirs: Theirs) -> None:
    stage = TrackedStage(store, "sft", KEY)
    stage.sent("theirs").made(theirs.run)
    courier = Courier(theirs.server, Watcher())
    courier.start()
    try:
        assert theirs.pulse.startswith("rack-7")
        courier.carry(stage, "RUNNING")
        deadline, seen = time.monotonic() + 20, set()
        while len(seen) < 3:
            assert time.monotonic() < deadline
            seen |= {theirs.pulse} if theirs.pulse.startswith(maker_of(theirs.server.home)) else set()
        courier.carry(stage, "KILLED")
        time.sleep(0.5)
        last = theirs.pulse
        time.sleep(0.7)
        assert theirs.pulse == last
    finally:
        courier.finish(lambda: None, 5)


def test_a_home_by_itself_has_no_pulse(store: Store, tmp_path: Path) -> None:
    courier = Courier(MlflowServer(tmp_path / "own"), Watcher())
    courier.start()
    courier.finish(lambda: None, 5)
    assert isinstance(courier._pulse, Pulse) and courier._pulse.ident is None
