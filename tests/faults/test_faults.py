"""The harness of `make faults` on a sample of faults that fits into a few minutes."""

from __future__ import annotations

import dataclasses
from itertools import islice

import pytest

from tests.faults.__main__ import carry_out
from tests.faults.outcome import Outcome, Outcomes, table
from tests.faults.reference import Reference
from tests.faults.schedule import ON_A_RUN, ON_A_STAGE, OTHERS, TRAINED, rounds, sample


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    made = Reference(tmp_path_factory.mktemp("faults"))
    made.make(until="sft")
    return made


@pytest.mark.e2e
@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(trial, id=trial.fault, marks=[pytest.mark.slow] if trial.fault == "run: Prefect stopped" else [])
        for trial in sample(seed=0, stage="sft")
    ],
)
def test_whatever_happens_the_same_command_again_gives_the_same_bytes(reference, trial, tmp_path):
    outcome = carry_out(reference, trial, tmp_path)
    if outcome.skipped:  # a small disk, where none may be mounted
        pytest.skip(outcome.skipped)
    assert outcome.good and outcome.injected == 1, outcome


def test_ten_rounds_are_two_hundred_faults_twenty_of_them_through_the_whole_command():
    trials = [trial for trials in islice(rounds(0), 10) for trial in trials]
    assert sum(trial.times for trial in trials) >= 200
    assert sum(trial.fault in ON_A_RUN for trial in trials) >= 20
    assert {trial.fault for trial in trials} == {*ON_A_STAGE, *ON_A_RUN}
    assert {trial.stage for trial in trials} == {*TRAINED, *OTHERS}


def test_the_seed_alone_says_what_happens():
    assert list(islice(rounds(3), 2)) == list(islice(rounds(3), 2)) != list(islice(rounds(4), 2))


GOOD = Outcome(0, "killed", "sft", injected=2, recovered=True, equal=True, repeated=[0, 2], allowed=[2, 2])


@pytest.mark.parametrize(
    "bad",
    [{"recovered": False}, {"equal": False}, {"repeated": [0, 3]}, {"lost": 1}, {"doubled": 1}, {"orphans": 1},
     {"remarks": ["it said nothing of it"]}],
    ids=str,
)  # fmt: skip
def test_one_thing_that_is_not_as_promised_is_enough(bad):
    assert GOOD.good and not dataclasses.replace(GOOD, **bad).good


def test_an_interrupted_run_of_the_harness_knows_what_is_over(tmp_path):
    first, second = next(rounds(0))[:2]
    Outcomes(tmp_path / "outcomes.jsonl").add(dataclasses.replace(GOOD, number=first.number))
    again = Outcomes(tmp_path / "outcomes.jsonl")
    assert again.has(first) and not again.has(second) and again.all[0].good and again.injected == 2


def test_the_table_counts_faults():
    worse = dataclasses.replace(GOOD, injected=3, repeated=[1, 2, 2], allowed=[2, 2, 2], equal=False)
    rows = [line.split("  ") for line in table([GOOD, worse]).splitlines()]
    killed = [word.strip() for word in rows[1] if word.strip()]
    assert killed == ["killed", "5", "5", "2", "7, at most 2", "0", "0", "0"]
