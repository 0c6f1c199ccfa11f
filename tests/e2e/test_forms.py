"""Every method's form, filled in and sent as Prefect's page sends it: a comparison, and what branches from that run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.forms import methods
from tests.e2e.servers import eventually
from tests.e2e.steered import SECONDS, Steered

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
COMPARED = ["dpo", "kto", "orpo"]
SHORT = {"instructions.limit": 64, "pairs.limit": 64, "feedback.limit": 64}
ONLINE = {"total_episodes": 16, "batch_size": 8, "max_new_tokens": 8}
"""Fields of the methods that sample from the policy while they train."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    up = Steered(tmp_path_factory.mktemp("forms"))
    yield up
    up.end()


@pytest.fixture(scope="module")
def compared(up: Steered) -> str:
    """The flow run of three methods from one SFT."""
    steps = {f"{uses}.max_steps": 4 for uses in COMPARED}
    flow_run = up.trigger(
        "align-compare", base="builtin:tiny-llama", methods=COMPARED, held_out=8, overrides={**SHORT, **steps}
    )
    up.until(flow_run, "Completed")
    return flow_run


def fields(up: Steered, uses: str) -> set[str]:
    """What a form asks for."""
    return set(up.api.call(f"/deployments/name/align-{uses}/align-{uses}")["parameter_openapi_schema"]["properties"])


def branched(up: Steered, compared: str, uses: str, **more: Any) -> dict[str, str]:
    """The states of the stages of a method that starts from what the comparison had made, by name."""
    form = {"base": "builtin:tiny-llama", "from_run": compared, "held_out": 8, **more}
    flow_run = up.trigger(f"align-{uses}", **{name: form[name] for name in fields(up, uses) & set(form)})
    eventually(lambda: up.flow_run(flow_run)["state_type"] in ("COMPLETED", "FAILED", "CRASHED"), SECONDS)
    assert up.state(flow_run) == "Completed", up.logs(flow_run)
    return dict(up.tasks(flow_run))


def test_methods_that_a_form_names_are_compared_on_the_runs_page(up, compared):
    shown = up.shown(compared)
    assert {"plan", "comparison", "frontier"} <= set(shown)
    stages, _, comparison = shown["report"].partition("| check rate |")
    for uses in COMPARED:
        assert f"| {uses} | ran |" in stages and f"\n| {uses} |" in comparison


@pytest.mark.parametrize("uses", sorted({*methods()} - {*COMPARED}))
def test_a_method_branches_from_the_stages_of_an_earlier_run(up, compared, uses):
    short = ONLINE if "total_episodes" in fields(up, uses) else {"overrides": {f"{uses}.max_steps": 4}}
    states = branched(up, compared, uses, **short)
    assert states[uses] == "Completed"
    before = {"base", "instructions", "pairs", "sft", "reward"} & set(states) - {uses}
    assert len(before) >= 2 and {states[stage] for stage in before} == {"Cached"}


def test_a_stage_that_a_form_wants_afresh_is_made_again_and_what_it_needs_is_not(up, compared):
    same = {"overrides": {"dpo.max_steps": 4}}
    assert branched(up, compared, "dpo", **same)["dpo"] == "Cached"
    states = branched(up, compared, "dpo", refresh=["dpo"], **same)
    assert (states["base"], states["sft"], states["dpo"]) == ("Cached", "Cached", "Completed")
