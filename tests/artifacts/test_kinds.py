from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from artifacts import errors
from artifacts.kinds import (
    Adapter,
    Artifact,
    Checkpoint,
    Preferences,
    Quantized,
    Report,
    RewardModel,
    Verdicts,
    base_of,
    describe,
    revive,
)

BASE = Checkpoint(key="b", path=Path("/base"))


@pytest.mark.parametrize(
    "artifact",
    [
        BASE,
        Adapter(key="a", path=Path("/a"), base=BASE),
        Adapter(key="q", path=Path("/q"), base=Quantized(key="4", path=Path("/4"), original=BASE)),
        RewardModel(key="r", path=Path("/r"), base=BASE),
        Preferences(key="p", path=Path("/p"), base=BASE),
        Report(key="e", path=Path("/e")),
        Verdicts(key="v", path=Path("/v")),
    ],
    ids=lambda artifact: artifact.kind,
)
def test_a_handle_survives_the_job_file(artifact: Artifact) -> None:
    assert revive(describe(artifact)) == artifact


def test_an_adapter_runs_on_its_base_and_a_checkpoint_on_itself() -> None:
    assert base_of(Adapter(key="a", path=Path("/a"), base=BASE)) == BASE
    assert base_of(BASE) == BASE


@pytest.mark.parametrize(
    "cls", [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.AlignError)]
)
def test_an_error_survives_pickling_and_the_trip_by_name(cls: type[errors.AlignError]) -> None:
    again = pickle.loads(pickle.dumps(cls("what is wrong")))
    assert (type(again), str(again), again.exit_status) == (cls, "what is wrong", cls.exit_status)
    revived = errors.revive(cls.__name__, "what is wrong")
    assert revived.exit_status == cls.exit_status


def test_an_unforeseen_error_is_a_stage_error() -> None:
    assert type(errors.revive("ZeroDivisionError", "x")) is errors.StageError
