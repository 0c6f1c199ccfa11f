"""Two runs that share stages train each once; the second says for whom it waits, and takes over if that one dies."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.e2e.test_tiny import processes_with, until_there_is_a_checkpoint

pytestmark = pytest.mark.e2e

RECIPE = "pipelines/tiny.yaml"
WORDS = ("sft.epochs=30", "--exec", "save_interval=2", "--until", "sft")
"""Long enough for a second run to start beside it."""


def until_it_says(process, text: str) -> str:
    """Reads its standard error until then."""
    said = ""
    deadline = time.monotonic() + 180
    while text not in said:
        line = process.stderr.readline()
        assert line and time.monotonic() < deadline, said
        said += line
    return said


def test_the_second_waits_says_for_whom_and_takes_the_result(first, shop):
    one = shop.start("run", RECIPE, *WORDS, "--json")
    until_there_is_a_checkpoint(shop, one, "sft")
    two = shop.start("run", RECIPE, *WORDS, "--json")
    said = until_it_says(two, "which works on the same stage")
    assert f"sft: waits for process {one.pid}" in said
    answers = [process.communicate(timeout=300)[0] for process in (one, two)]
    assert [process.returncode for process in (one, two)] == [0, 0]
    lines = [json.loads(answer)["stages"][-1] for answer in answers]
    assert [line["status"] for line in lines] == ["ran", "cached"] and lines[0]["digest"] == lines[1]["digest"]
    assert lines[0]["mlflow_run_id"] == lines[1]["mlflow_run_id"]
    assert json.loads(answers[0])["run_id"] != json.loads(answers[1])["run_id"]


@pytest.mark.slow
def test_when_the_first_is_killed_the_second_goes_on_from_its_checkpoint_within_seconds(first, shop):
    words = (RECIPE, "sft.learning_rate=2.0e-3", *WORDS)
    undisturbed = shop.align("run", *words, "--json", ALIGN_HOME=str(shop.home.parent / "undisturbed"))
    one = shop.start("run", *words)
    trainer = until_there_is_a_checkpoint(shop, one, "sft")
    two = shop.start("run", *words, "--json")
    until_it_says(two, "which works on the same stage")
    one.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    until_it_says(two, "going on from checkpoint-")
    assert time.monotonic() - killed < 40, "most of it is a trainer's imports"
    one.communicate(timeout=60)
    line = json.loads(two.communicate(timeout=300)[0])["stages"][-1]
    assert line["status"] == "resumed" and line["digest"] == undisturbed.stage("sft")["digest"]
    assert not processes_with(trainer)
