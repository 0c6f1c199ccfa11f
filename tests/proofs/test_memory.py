"""The plan's memory beside measured peaks, setting by setting: `python -m tests.bench.memory`, as a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.running import launch
from tests.bench import memory
from tests.bench.memory_settings import SETTINGS, Setting
from tests.bench.memory_workload import Workload

pytestmark = pytest.mark.slow
OVER, UNDER = 0.20, 0.10


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return memory.prepared(tmp_path_factory.mktemp("memory") / "work", "cpu")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_plan_is_within_a_fifth_of_the_peak_and_never_a_tenth_under_it(setting: Setting, work: Workload) -> None:
    found = memory.measure(setting, work, "cpu")
    print(memory.line(found))  # noqa: T201  (shown by pytest -rP)
    assert -UNDER <= found.off <= OVER


def test_the_settings_are_measured_in_the_environment_of_a_flow(tmp_path: Path) -> None:
    assert memory.KEEP_MEMORY == launch.KEEP_MEMORY
