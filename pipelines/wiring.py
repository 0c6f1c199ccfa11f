"""Which stage takes what from which: every field and input checked, the kinds of artifacts with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from artifacts.kinds import Artifact
from pipelines.problems import Problems, did_you_mean, field_problems
from tasks.registry import STAGES, stage_class
from tasks.stage import Input, Stage

Stages = Mapping[str, Mapping[str, Any]]
"""The recipe's stages as they stand there."""
Wiring = dict[str, dict[str, str]]
"""For each stage its inputs, as {field: stage}."""
BESIDE = ("uses", "seed", "refresh")
"""What a recipe says of a stage beside its fields: which one it is, a seed of its own in place of the recipe's, and how
often it was to be made afresh."""


def check_stages(stages: Any, problems: Problems) -> tuple[Wiring, dict[str, Stage]]:
    """Collect what is wrong with any stage; gives how they are wired, and the stages bound to handles without keys.

    Without problems, both hold every stage.
    """
    known = {
        label: stage_class(fields["uses"]).spelled_out(fields)
        for label, fields in (stages.items() if isinstance(stages, dict) else ())
        if isinstance(fields, dict) and isinstance(label, str) and _is_known(label, fields.get("uses"), problems)
    }
    wiring = {label: _inputs(label, known, stages, problems) for label in known}
    for label in known:
        _check_seed(label, known[label], problems)
        _check_refresh(label, known[label], problems)
    if cycle := _cycle(wiring):
        problems.add(" -> ".join(cycle), "these stages wait for each other; an input must come from an earlier stage")
        return wiring, {}
    return wiring, _bound(known, wiring, problems)


def ordered(wiring: Wiring) -> list[str]:
    """By depth, then as the recipe says: so all data is checked before anything trains."""
    depth: dict[str, int] = {}

    def of(label: str) -> int:
        if label not in depth:
            depth[label] = 1 + max((of(needed) for needed in wiring[label].values()), default=-1)
        return depth[label]

    return sorted(wiring, key=of)


def with_needs(labels: Iterable[str], needs: Mapping[str, Iterable[str]]) -> set[str]:
    """These stages and all that they need, where `needs` says of each what it takes its inputs from."""
    found, todo = set[str](), list(labels)
    while todo:
        if (label := todo.pop()) not in found:
            found.add(label)
            todo.extend(needs[label])
    return found


def _is_known(label: str, uses: Any, problems: Problems) -> bool:
    if isinstance(uses, str) and uses in STAGES:
        return True
    wanted = f"wanted one of {', '.join(STAGES)}"
    if uses is None:
        problems.add(f"{label}.uses", f"missing; {wanted}")
    else:
        problems.add(f"{label}.uses", f"{wanted}, got {uses!r}{did_you_mean(uses, STAGES)}")
    return False


def _check_seed(label: str, fields: Mapping[str, Any], problems: Problems) -> None:
    if "seed" not in fields:
        return
    seed, uses = fields["seed"], fields["uses"]
    if not stage_class(uses).seeded:
        problems.add(f"{label}.seed", f"{uses} draws nothing at random; leave it out")
    elif not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.add(f"{label}.seed", f"wanted a whole number, 0 or more, got {seed!r}")


def _check_refresh(label: str, fields: Mapping[str, Any], problems: Problems) -> None:
    times = fields.get("refresh", 0)
    if not isinstance(times, int) or isinstance(times, bool) or times < 0:
        problems.add(f"{label}.refresh", f"wanted a whole number, 0 or more, got {times!r}")


def _inputs(label: str, known: Stages, stages: Mapping[str, Any], problems: Problems) -> dict[str, str]:
    """The inputs that name a stage which can be looked at."""
    wired = {}
    for name, wanted in stage_class(known[label]["uses"]).inputs().items():
        given = known[label].get(name)
        if given is None:
            if wanted.required:
                problems.add(f"{label}.{name}", f"missing; wanted the name of a stage that makes {_named(wanted.kind)}")
        elif not isinstance(given, str):
            problems.add(f"{label}.{name}", f"wanted the name of a stage, got {given!r}")
        elif given not in stages:
            problems.add(f"{label}.{name}", f"no stage is named {given!r}{did_you_mean(given, map(str, stages))}")
        elif given in known:
            wired[name] = given
    return wired


def _named(kind: type[Artifact]) -> str:
    """`an adapter`, `preferences`, `feedback`."""
    name = kind.kind.replace("_", " ")
    if name == "quantized":
        return "a quantized checkpoint"
    return name if name.endswith("s") or name == "feedback" else f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _cycle(wiring: Wiring) -> list[str] | None:
    done: set[str] = set()

    def visit(label: str, path: list[str]) -> list[str] | None:
        if label in path:
            return [*path[path.index(label) :], label]
        if label in done:
            return None
        for needed in wiring[label].values():
            if cycle := visit(needed, [*path, label]):
                return cycle
        done.add(label)
        return None

    return next((cycle for label in wiring if (cycle := visit(label, []))), None)


def _bound(known: Stages, wiring: Wiring, problems: Problems) -> dict[str, Stage]:
    """Validate fields and the kinds of inputs. What a stage makes hangs on its fields and inputs, never on a key."""
    bound: dict[str, Stage] = {}
    handles: dict[str, Artifact] = {}
    wrong: list[tuple[str, str, Input]] = []
    for label in ordered(wiring):
        fields = {name: value for name, value in known[label].items() if name not in BESIDE}
        cls = stage_class(known[label]["uses"])
        complete = True
        for name, wanted in cls.inputs().items():
            if fields.get(name) is None and not wanted.required:
                continue
            handle = handles.get(wiring[label].get(name, ""))
            if handle is not None and not isinstance(handle, wanted.kind):
                wrong.append((label, name, wanted))
            fits = handle is not None and isinstance(handle, wanted.kind)
            complete &= fits
            fields[name] = handle if fits else wanted.kind.model_construct(key="", path=Path())
        found = field_problems(cls, fields, label)
        problems.extend(found)
        if complete and not found:
            bound[label] = cls.model_validate(fields)
            handles[label] = bound[label].output("", Path())
    for label, name, wanted in wrong:
        problems.add(f"{label}.{name}", _wrong_kind(wiring[label][name], wanted, handles))
    return bound


def _wrong_kind(given: str, wanted: Input, handles: Mapping[str, Artifact]) -> str:
    makers = [label for label, handle in handles.items() if isinstance(handle, wanted.kind)]
    return (
        f"wanted {_named(wanted.kind)}, but {given!r} makes {_named(type(handles[given]))}; "
        f"stages here that fit: {', '.join(makers) or 'none'}"
        + (f" ({wanted.kind.made_by})" if wanted.kind.made_by and not makers else "")
    )
