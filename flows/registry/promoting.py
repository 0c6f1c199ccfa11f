"""`align promote` and `align rollback`: complete models as versions in MLflow's model registry, through a gate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from artifacts.errors import AlignError, UserError
from artifacts.locking import held
from artifacts.store import Store
from flows.home import align_home
from flows.registry.champion_event import tell_champion
from flows.registry.describing import description, stored_figures, tags_of
from flows.registry.measuring import Made, find_model, find_report, measured
from flows.registry.versions import CANDIDATE, CHAMPION, PREVIOUS, Versions, only_champion
from flows.tables import gate_table
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.notes import add_version
from pipelines.gate import Condition, Measured, Verdict, conditions, judge
from pipelines.problems import did_you_mean

ALIASES = (CANDIDATE, CHAMPION)


@dataclass(frozen=True)
class Opponent:
    """The champion as it was measured anew, beside the model that is to take its place."""

    version: str | None
    """None: there was no champion."""
    report: str | None = None
    """The evaluate stage that measured it, as `RUN:name`."""


@dataclass(frozen=True)
class Promotion:
    """What became of a model that was to be promoted; `champion` and `previous` are versions, as they are now."""

    model: str
    alias: str
    promoted: bool
    version: str | None
    registered: bool
    """Whether the version is new."""
    key: str
    digest: str
    report: str | None
    conditions: list[dict[str, Any]]
    champion: str | None
    previous: str | None

    @property
    def said(self) -> str:
        """One sentence."""
        if not self.promoted:
            failed = sum(not one["passed"] for one in self.conditions)
            stays = f"version {self.champion} stays champion" if self.champion else "it has no champion yet"
            return f"not promoted: {failed} of {len(self.conditions)} conditions failed; {self.model}: {stays}"
        made = "new version" if self.registered else "version"
        before = f"; version {self.previous} is `previous`" if self.alias == CHAMPION and self.previous else ""
        return f"{self.model}: {made} {self.version} is {self.alias}, models:/{self.model}@{self.alias}{before}"


def promote(
    stage: str, alias: str, *, name: str | None = None, must: Sequence[str] | Mapping[str, Any] = (),
    report: str | None = None, over: Opponent | None = None,
) -> Promotion:  # fmt: skip
    """Register a complete model and put an alias on it, if it meets all conditions; else change nothing.

    The champion's figures are those that its version carries. With `over` they are those of a report made for this,
    and a model that does not meet the conditions is a version too, without an alias. Raises UserError for what is
    wrong with the request, or an MLflow that does not answer.
    """
    if alias not in ALIASES:
        raise UserError(f"--as: wanted {' or '.join(ALIASES)}, got {alias!r}{did_you_mean(alias, ALIASES)}")
    gate = conditions(must, "must" if isinstance(must, Mapping) else "--must")
    store = Store(align_home())
    model = find_model(stage, store)
    found = find_report(model, report)
    if gate and found is None:
        where, policy = " of this run" if model.by_run else "", model.name(model.manifest)
        raise UserError(
            f"{stage}: no evaluate stage{where} measures it; add `{{uses: evaluate, policy: {policy}, data: DATA}}` "
            "to its recipe and run it, or name one with --report"
        )
    if (name := name or model.recipe) is None:
        raise UserError(f"{stage}: no run of it is left whose recipe could name the model; name it with --name")
    server = MlflowServer.reach(store.home)
    with server.answering(), held(store.home / "locks" / "promotion", wait=True):
        return _promoted(model, found, Versions(server, name), server, alias, gate, over)


def _promoted(
    model: Made, report: Made | None, versions: Versions, server: MlflowServer, alias: str,
    gate: Sequence[Condition], over: Opponent | None,
) -> Promotion:  # fmt: skip
    verdicts: list[Verdict] = []
    if report is not None:
        verdicts = judge(gate, measured(report), _champions_figures(versions, gate, over, model.store))
    number, new = None, False
    promoted = all(verdict.passed for verdict in verdicts)
    if promoted or over is not None:
        number, new = _registered(model, report, versions, server, alias, verdicts)
    if promoted and number is not None:
        before = versions.aliases.get(CHAMPION)
        versions.move(alias, number)
        if alias == CHAMPION and before != number:
            tell_champion(versions.name, number, before, "promote")
    aliases = versions.aliases
    return Promotion(
        versions.name, alias, promoted, number, new, model.manifest.key, model.manifest.digest,
        report.manifest.key if report is not None else None, [verdict.as_dict() for verdict in verdicts],
        aliases.get(CHAMPION), aliases.get(PREVIOUS),
    )  # fmt: skip


def _champions_figures(
    versions: Versions, gate: Sequence[Condition], over: Opponent | None, store: Store
) -> Measured | None:
    """None where there is no champion, or nothing asks for it."""
    if over is not None:
        if (number := versions.aliases.get(CHAMPION)) != over.version:
            raise UserError(
                f"{versions.name}: its champion is version {number} by now, and version {over.version} is what this "
                "was measured against; run it again"
            )
        return measured(Made.find(over.report, store)) if over.report is not None else None
    champion = versions.at(CHAMPION) if any(condition.champion for condition in gate) else None
    return stored_figures(champion) if champion is not None else None


def _registered(
    model: Made, report: Made | None, versions: Versions, server: MlflowServer, alias: str, verdicts: Sequence[Verdict]
) -> tuple[str, bool]:
    """The number of the model's version, and whether it is new; one that is there gets a newer report's figures.

    But not those with which it failed: as it stands there it has been judged before, and may be in use.
    """
    manifest = model.manifest
    run = server.run_of(manifest.key, manifest.digest)
    if run is None:
        raise UserError(
            f"{model.said}: MLflow at {server.shown} does not have its files; `align sync` sends what was tracked "
            "offline, or on another server"
        )
    said = description(model, report, _run_link(model, server), alias, verdicts)
    there = versions.with_digest(manifest.digest)
    if there is None:
        number = versions.make(run, tags_of(model, report), said)
        parent = model.run.mlflow_run_id if model.run is not None else None
        for each in (run, parent):
            if each is not None and server.has(each):
                add_version(server.client, each, versions.name, number)
        return number, True
    if report is not None and all(verdict.passed for verdict in verdicts):
        versions.rewrite(str(there.version), tags_of(model, report), said)
    return str(there.version), False


def _run_link(model: Made, server: MlflowServer) -> str | None:
    """Where MLflow's pages show the run that the model is of, if this server has it."""
    run = model.run.mlflow_run_id if model.run is not None else None
    if run is None or not server.has(run):
        return None
    return f"#/experiments/{server.client.get_run(run).info.experiment_id}/runs/{run}"


def show_promotion(
    stage: str, alias: str, *, name: str | None, must: Sequence[str], report: str | None, as_json: bool
) -> int:
    """Print what `promote` did; raises AlignError where a condition failed."""
    done = promote(stage, alias, name=name, must=must, report=report)
    if as_json:
        print(json.dumps(asdict(done)))
    elif done.conditions:
        print(gate_table(done.conditions))
    if not done.promoted:
        raise AlignError(done.said)
    if not as_json:
        print(done.said)
    return 0


def roll_back(*, name: str | None, as_json: bool) -> int:
    """Make the champion before the champion again, and the other `previous`; raises UserError if there is none."""
    home = align_home()
    server = MlflowServer.reach(home)
    with server.answering(), held(home / "locks" / "promotion", wait=True):
        versions = Versions(server, name or only_champion(server))
        champion, previous = versions.roll_back()
        tell_champion(versions.name, champion, previous, "rollback")
    if as_json:
        print(json.dumps({"model": versions.name, "champion": champion, "previous": previous}))
    else:
        print(f"{versions.name}: version {champion} is champion again; version {previous} is `previous`")
    return 0
