"""PPO in two processes: rows are divided, and the update is that of one process on the same completions."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.left import UNTIMED
from tests.tasks.parallel.conftest import furthest
from tests.tasks.rl.runs import furthest as furthest_tensor


@pytest.mark.parametrize("name", ["ppo", pytest.param("ppo on top layers", marks=pytest.mark.slow)])
def test_on_the_same_completions_the_update_is_that_of_one_process(name, ran):
    """Their ids come from a stream of each row's own, so both have sampled the same; then all figures agree."""
    one, two = ran(name), ran(name, 2)
    samples = [(each.draft / "samples.jsonl").read_text().count("\n") for each in (one, two)]
    assert samples[0] == samples[1] > 0
    assert [ids(each) for each in (one,)] == [ids(each) for each in (two,)], "other completions, so nothing to compare"
    names = {name for name in one.points()[0]["metrics"] if not name.startswith(UNTIMED)}
    assert furthest(one, two, *names) < 1e-5
    adapters = [load_file(each.draft / "out" / "adapter_model.safetensors") for each in (one, two)]
    assert furthest_tensor(*adapters) < 3e-6
    assert max(point["metrics"]["val/first_ratio_deviation"] for point in two.points()) == 0.0


def ids(ran):
    import json

    lines = (ran.draft / "samples.jsonl").read_text().splitlines()
    return [(line["sample"]["prompt"], line["sample"]["completion"]) for line in map(json.loads, lines)]
