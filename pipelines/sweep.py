"""A sweep: one recipe with several values for some fields, as branches of one plan.

    dpo.beta=0.05|0.1|0.3   sft.lora.rank=8|16

makes every combination, but no stage twice: a stage is copied only for what it, or a stage before it, has several
values of. Here `sft` stands there twice and `dpo` six times; the base and the data stand there once. A label names the
fields in the order in which they were given:

    sft@rank=8   sft@rank=16   dpo@beta=0.05,rank=8   dpo@beta=0.05,rank=16   ...
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.limits import MOST_COPIES
from pipelines.problems import Problems
from pipelines.wiring import Stages, Wiring, check_stages, ordered
from tasks.registry import stage_class

Sweep = Mapping[str, Sequence[Any]]
"""`stage.field`, and its values."""
Choice = Mapping[str, int]
"""For each swept field that a stage hangs on, which of its values."""
MOST_BRANCHES = 16
"""More than so many are only made if that was asked for."""


def set_field(fields: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set `lora.rank` in a stage's raw fields, where `lora` need not be there."""
    for part in path[:-1]:
        if not isinstance(fields.get(part), dict):
            fields[part] = {}
        fields = fields[part]
    fields[path[-1]] = value


def swept(stages: Stages, sweep: Sweep, most_branches: int, problems: Problems) -> Stages:
    """The stages with every branch among them; what is wrong with the sweep goes into `problems`."""
    if not _is_sound(stages, sweep, problems):
        return stages
    wiring, _ = check_stages(stages, problems)
    hangs_on = _hangs_on(wiring, sweep)
    if (count := _branches(hangs_on, sweep)) > most_branches:
        problems.add(
            ", ".join(sweep),
            f"wanted at most {most_branches} branches, got {count}; leave out values, or add --yes (max_branches)",
        )
    elif (count := sum(math.prod(len(sweep[name]) for name in names) for names in hangs_on.values())) > MOST_COPIES:
        problems.add(", ".join(sweep), f"wanted at most {MOST_COPIES:,} stages with all branches, got {count:,}")
    if problems.found:
        return stages
    return dict(_copies(stages, wiring, hangs_on, sweep))


def _is_sound(stages: Stages, sweep: Sweep, problems: Problems) -> bool:
    """Each value is looked at by itself, so that what is wrong with it is said once and under the field's own name."""
    for name, values in sweep.items():
        if "." not in name:
            problems.add(name, f"wanted stage.field, since stages with another {name} would share nothing")
        elif len(values) > MOST_COPIES:  # before each is looked at, which takes long
            problems.add(name, f"wanted at most {MOST_COPIES:,} values, got {len(values):,}")
        elif len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
            problems.add(name, f"wanted values that differ, got {' | '.join(map(str, values))}")
        elif _is_input(stages, name):
            problems.add(name, "an input has one value; write a stage for each")
        else:
            label, *path = name.split(".")
            for value in values:
                fields = copy.deepcopy(dict(stages[label]))
                set_field(fields, path, value)
                check_stages({**stages, label: fields}, problems)
                if problems.found:
                    return False
    return not problems.found


def _is_input(stages: Stages, name: str) -> bool:
    """Whether a swept field is an input; a weight within `reward: {reward: 1.0, checks: 0.5}` is none."""
    label, field, *within = name.split(".")
    weight = within and isinstance(stages[label].get(field), dict)
    return not weight and field in stage_class(stages[label]["uses"]).inputs()


def _hangs_on(wiring: Wiring, sweep: Sweep) -> dict[str, tuple[str, ...]]:
    """For each stage the swept fields that make it another one: its own, and those of the stages before it."""
    found: dict[str, tuple[str, ...]] = {}
    for label in ordered(wiring):
        before = [name for needed in wiring[label].values() for name in found[needed]]
        own = [name for name in sweep if name.partition(".")[0] == label]
        found[label] = tuple(name for name in sweep if name in {*before, *own})
    return found


def _branches(hangs_on: Mapping[str, tuple[str, ...]], sweep: Sweep) -> int:
    """Combinations that end somewhere: those of a stage that another one builds on are counted there."""
    every = {frozenset(names) for names in hangs_on.values()}
    ends = [names for names in every if not any(names < other for other in every)]
    return sum(math.prod(len(sweep[name]) for name in names) for names in ends if names)


def _copies(
    stages: Stages, wiring: Wiring, hangs_on: Mapping[str, tuple[str, ...]], sweep: Sweep
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every stage of the result by its label."""
    for label, fields in stages.items():
        for places in itertools.product(*(range(len(sweep[name])) for name in hangs_on[label])):
            choice = dict(zip(hangs_on[label], places, strict=True))
            made = copy.deepcopy(dict(fields))
            for name, place in choice.items():
                if name.partition(".")[0] == label:
                    set_field(made, name.split(".")[1:], sweep[name][place])
            made = stage_class(made["uses"]).spelled_out(made)  # else an input's label would replace a shorthand
            for field, needed in wiring[label].items():
                made[field] = _label(needed, {name: choice[name] for name in hangs_on[needed]}, sweep)
            yield _label(label, choice, sweep), made


def _label(label: str, choice: Choice, sweep: Sweep) -> str:
    """`dpo@beta=0.1,rank=8`; of fields of two stages that are called alike, both go by their full names."""
    last = [name.rpartition(".")[2] for name in choice]
    said = [
        f"{name if last.count(field := name.rpartition('.')[2]) > 1 else field}={_shown(sweep[name][place])}"
        for name, place in choice.items()
    ]
    return f"{label}@{','.join(said)}" if said else label


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
