"""A flow for each method, with a flat form of its own, and one that compares several from one SFT.

A form becomes a recipe (pipelines/forms.py), which is written under `$ALIGN_HOME/recipes`: what was asked for in a page
can be run again, and changed, on the command line.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import flows.before_prefect  # noqa: F401

# isort: split
from prefect import Flow

from artifacts.errors import UserError
from flows.commands.planning import Wanted
from flows.deployments.branching import earlier_stages
from flows.deployments.form_fields import ABOUT_DATA, MOST_TRAININGS, compare_fields, form_fields, method_fields
from flows.deployments.form_flow import form_flow, write_recipe
from flows.home import align_home
from flows.running.stages import run_stages
from pipelines.allowed import SHIPPED
from pipelines.forms import Form, methods, needed_data, recipe_of
from tasks.registry import stage_class
from tasks.sources import first_there


def wanted_of(name: str, chosen: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> Wanted:
    """What a filled-in form asks for; raises UserError for what is wrong with it.

    `chosen` are the methods with their settings, `given` is what is the same in all forms.
    """
    sources = {label: _found(given[label]) for label in ("instructions", "pairs", "feedback") if given.get(label)}
    form = Form(
        base=_found(given["base"]), sources=sources, split_pairs=given.get("split_pairs", False),
        start=given.get("start", "base"),
        weights="all" if given["weights"] == "all weights" else "adapters", rank=given["rank"],
        judged_by_reward=given.get("reward_model", False), held_out=given.get("held_out", 1),
        earlier=earlier_stages(align_home(), given["from_run"]) if given["from_run"] else {},
    )  # fmt: skip
    recipe = recipe_of(chosen, form, name=given["experiment"], seed=given["seed"])
    until = given["until"] if given["until"] != "the end" else None
    path = write_recipe(name, recipe, f"From the form {name}.")
    return Wanted(
        path, given["overrides"], given["execution"], until=until, refresh=tuple(given["refresh"]), from_form=True
    )


def _found(source: str) -> str:
    """A shipped file by its whole path (the quickstart's are); anything else as it is, whether or not it is there."""
    with suppress(ValueError):  # a byte 0 in it
        path = (SHIPPED / source).resolve()
        if path.is_relative_to(SHIPPED) and first_there([path]):
            return str(path)
    return source


def method_flow(uses: str) -> Flow[Any, Any]:
    """The flow of one method: its form shows what the method needs, and the settings that it says matter."""
    cls, name = stage_class(uses), f"align-{uses}"
    own = method_fields(cls)
    example = recipe_of({uses: {}}, _example(needed_data(uses)), name=name)
    fields = form_fields(needed_data(uses), own, list(example["stages"]), starts="policy" in cls.inputs())

    def run(given: dict[str, Any]) -> Wanted:
        settings = {field.name: given[field.name] for field in own if given[field.name] != field.default}
        return wanted_of(name, {uses: settings}, given)

    text = inspect.getdoc(inspect.getmodule(cls)) or name
    return form_flow(name, text.splitlines()[0], fields, lambda given: run_stages(run(given)), __name__)


def compare_flow() -> Flow[Any, Any]:
    """The flow that runs several methods from one SFT and compares them."""
    every = [uses for uses in methods() if "policy" in stage_class(uses).inputs()]
    alike = [uses for uses in every if needed_data(uses) == needed_data(every[0])]  # they learn from the same rows
    data = [label for label in ABOUT_DATA if any(label in needed_data(uses) for uses in every)]
    example = recipe_of({uses: {} for uses in every}, _example(data), name="align-compare")
    fields = form_fields(data, compare_fields(every, alike), list(example["stages"]), starts=True)
    text = "Several methods from one SFT, evaluated alike and compared."
    return form_flow("align-compare", text, fields, lambda given: run_stages(compared(given)), __name__)


def compared(given: Mapping[str, Any]) -> Wanted:
    """What a filled-in form of `align-compare` asks for: each method as often as there are seeds."""
    chosen, first, number = list(dict.fromkeys(given["methods"])), given["seed"], given["seeds"]
    if len(chosen) * number > MOST_TRAININGS:
        raise UserError(
            f"Seeds: wanted at most {MOST_TRAININGS} trainings in one run, got {len(chosen)} methods times {number} "
            f"seeds = {len(chosen) * number}; ask for {MOST_TRAININGS // len(chosen)} seeds, or for fewer methods"
        )
    wanted = wanted_of("align-compare", {uses: {} for uses in chosen}, given)
    seeds = range(first, first + number)
    sweep = {f"{uses}.seed": list(seeds) for uses in chosen} if number > 1 else {}
    return replace(wanted, sweep=sweep, max_branches=MOST_TRAININGS)


def _example(data: list[str]) -> Form:
    """A form as it might be filled in, which says what stages there are."""
    return Form(base="a base", sources=dict.fromkeys(data, "a file"))


FLOWS = {name: method_flow(name) for name in methods()}
globals().update({each.fn.__name__: each for each in FLOWS.values()})  # where Prefect looks for a deployment's flow
align_compare = compare_flow()
