"""`align compare`, and finding what a user names: a run, a stage of a run, or the beginning of a key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from artifacts.errors import UserError
from artifacts.manifest import Manifest
from artifacts.store import Store
from flows.home import align_home
from flows.records import find_record
from flows.summary import policies_of
from flows.tables import policies_table
from pipelines.compare import Compared, chart, differences, side_by_side

SHORTEST_KEY = 6


def compare(what: Sequence[str], *, as_json: bool, chart_file: Path | None, completions: int) -> int:
    """Print the evaluated policies of runs and stages as one table."""
    policies = [policy for name in what for policy in _policies(name, prefix=len(what) > 1)]
    if not policies:
        raise UserError(f"{' '.join(what)}: no evaluate stage there has finished; its recipe may have none")
    if chart_file is not None and (figure := chart(policies)) is not None:
        figure.savefig(chart_file, dpi=120)
    if as_json:
        said = [{"name": policy.name, "metrics": policy.metrics, "by_kind": policy.by_kind} for policy in policies]
        print(json.dumps({"policies": said, "differences": differences(policies)}))
        return 0
    print(policies_table(policies))
    print("\n".join(differences(policies)))
    if completions:
        print("\n" + side_by_side(policies, completions))
    return 0


def _policies(name: str, *, prefix: bool) -> list[Compared]:
    """A whole run's policies, or the one of a stage."""
    if ":" in name or _by_key(name) is not None:
        folder = find_output(name)
        if not (folder / "completions.jsonl").exists():
            raise UserError(f"{name}: wanted an evaluate stage, but its output is no report ({folder})")
        return [Compared.read(name, folder)]
    record = find_record(align_home(), name)
    found = policies_of(record)
    if not prefix:
        return found
    return [replace(one, name=f"{name}:{one.name}") for one in found]


def find_output(name: str) -> Path:
    """The output folder of `RUN:stage`, or of the only result whose key starts with `name`; raises UserError."""
    run, colon, label = name.partition(":")
    if colon:
        record = find_record(align_home(), run)
        stages = {stage["name"]: stage for stage in record.stages}
        if label not in stages:
            raise UserError(f"{record.run_id} has no stage {label!r}; its stages: {', '.join(stages)}")
        if stages[label]["path"] is None or not Path(stages[label]["path"]).exists():
            raise UserError(f"{name}: has no output; it {stages[label]['status']}")
        return Path(stages[label]["path"])
    manifest = _by_key(name)
    if manifest is None:
        raise UserError(f"{name!r} is neither RUN:stage nor the beginning of a key; `align runs` lists the runs")
    return Store(align_home()).folder(manifest.uses, manifest.key) / "out"


def _by_key(name: str) -> Manifest | None:
    if len(name) < SHORTEST_KEY:
        return None
    matching = [manifest for manifest in Store(align_home()).all() if manifest.key.startswith(name)]
    if len(matching) > 1:
        raise UserError(f"{name!r} is the beginning of {len(matching)} keys; give more of it")
    return matching[0] if matching else None
