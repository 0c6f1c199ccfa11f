"""What is to be promoted, and the evaluation that measured it: found among what is under `$ALIGN_HOME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from artifacts.errors import UserError
from artifacts.manifest import Manifest
from artifacts.store import Store
from flows.commands.comparing import find_output
from flows.records import RunRecord, find_record, load_records
from flows.tracking.tracked_run import TrackedRun
from pipelines.gate import Measured
from tasks.card import lineage


@dataclass(frozen=True)
class Made:
    """A stage's result, as it was named, and the run that it was named with, else the newest that has it."""

    said: str
    store: Store
    manifest: Manifest
    run: RunRecord | None

    @classmethod
    def find(cls, said: str, store: Store) -> Made:
        """Raises UserError if there is no such result, or if it is damaged."""
        manifest = Manifest.read(find_output(said).parent)
        if damage := store.damage(manifest.uses, manifest.key):
            raise UserError(f"{said}: its output is damaged ({damage}); run its recipe again, which makes it anew")
        if ":" in said:
            return cls(said, store, manifest, find_record(store.home, said.partition(":")[0]))
        having = (each for each in load_records(store.home) if manifest.key in {stage["key"] for stage in each.stages})
        return cls(said, store, manifest, next(having, None))

    @property
    def by_run(self) -> bool:
        """Whether it was named as a stage of a run."""
        return ":" in self.said

    @property
    def folder(self) -> Path:
        return self.store.folder(self.manifest.uses, self.manifest.key)

    @cached_property
    def chain(self) -> list[Manifest]:
        """Of all that it was made from, inputs first, and of itself."""
        return lineage(self.folder)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What the run calls its stages, by key."""
        return {stage["key"]: stage["name"] for stage in self.run.stages} if self.run is not None else {}

    def name(self, manifest: Manifest) -> str:
        """What the run calls a stage; one that it does not have, by what it does."""
        return self.names.get(manifest.key, manifest.uses)

    def said_of(self, manifest: Manifest) -> str:
        """How to name another stage on the command line."""
        if self.run is None or manifest.key not in self.names:
            return manifest.key[:12]
        return f"{self.run.run_id}:{self.names[manifest.key]}"

    @property
    def recipe(self) -> str | None:
        """The name of the run's recipe."""
        if self.run is None:
            return None
        facts = TrackedRun(self.store.home, self.run.run_id).facts
        return str(facts["experiment"]) if facts is not None else Path(self.run.recipe).stem


def find_model(said: str, store: Store) -> Made:
    """A complete model; raises UserError for anything else, with what would make it one."""
    made = Made.find(said, store)
    kind = made.manifest.kind
    if kind == "checkpoint":
        return made
    if kind == "quantized":
        raise UserError(f"{said} has its weights in 4 bits; promote what it was made from, or a merge on it")
    if kind != "adapter":
        raise UserError(f"{said}: wanted a stage that makes a complete model, such as merge, but this makes a {kind}")
    raise UserError(f"{said} is an adapter, and only complete models are promoted; {_merge(made)}")


def _merge(adapter: Made) -> str:
    """What to do about an adapter: promote the merge that there is, or make one."""
    for each in adapter.store.all():
        if each.payload["inputs"].get("adapter") == adapter.manifest.key:
            return f"promote its merge, {adapter.said_of(each)}"
    name = adapter.name(adapter.manifest)
    return f"add `merge: {{uses: merge, adapter: {name}, data: DATA}}` to the recipe, run it, and promote that"


def find_report(model: Made, said: str | None) -> Made | None:
    """The evaluation of a model, or of the adapter that it merged: of the same run if the model was named by one.

    `said` names it. Raises UserError if that is none of this model, or if there are several to choose from.
    """
    policies = [model.manifest.key, *_as_good_as(model)]
    if said is not None:
        report = Made.find(said, model.store)
        if report.manifest.kind != "report":
            raise UserError(f"--report {said}: wanted an evaluate stage, but this makes a {report.manifest.kind}")
        if _policy(report.manifest) not in policies:
            raise UserError(f"--report {said}: it measures another policy ({_policy(report.manifest)[:12]})")
        return report
    reports = [each for each in model.store.all() if each.kind == "report"]
    if model.by_run:
        reports = [each for each in reports if each.key in model.names]
    for policy in policies:
        found = [each for each in reports if _policy(each) == policy]
        if len(found) > 1:
            names = ", ".join(sorted(model.said_of(each) for each in found))
            raise UserError(f"{model.said} was evaluated more than once; name one of {names} with --report")
        if found:
            return Made(found[0].key, model.store, found[0], model.run)
    return None


def _as_good_as(model: Made) -> list[str]:
    """The adapter that a merge put into the weights that it was trained on: the same policy up to rounding."""
    merge = model.manifest
    across = merge.fields.get("into") == "original" and any(each.uses == "quantize" for each in model.chain)
    adapter = merge.payload["inputs"].get("adapter")
    return [adapter] if adapter is not None and not across else []


def _policy(report: Manifest) -> str:
    return str(report.payload["inputs"]["policy"])


def measures_adapter(report: Made, model: Made) -> bool:
    """Whether it was the adapter that was measured, before the merge."""
    return _policy(report.manifest) != model.manifest.key


def measured(report: Made) -> Measured:
    """Its figures, and what they were measured on.

    Held-out rows count by their content, so that other rows for training change nothing.
    """
    metrics, payload = report.manifest.metrics, report.manifest.payload
    figures = {name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")}
    inputs = {name: key for name, key in payload["inputs"].items() if name not in ("policy", "data")}
    data = payload["inputs"]["data"]
    held_out = next((each.files["test.jsonl"].sha256 for each in report.chain if each.key == data), data)
    fields = {name: value for name, value in payload["fields"].items() if name != "batch_size"}
    return Measured(figures, {"version": payload["version"], "held_out": held_out, **fields, **inputs})
