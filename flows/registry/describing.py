"""What a version of a registered model says of itself in MLflow: as tags, for programs, and as a page, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from pydantic import TypeAdapter, ValidationError

from artifacts.errors import UserError
from artifacts.manifest import Manifest
from flows.registry.measuring import Made, measured, measures_adapter
from flows.tracking.mlflow_server import DIGEST_TAG, KEY_TAG, USES_TAG
from pipelines.comparison.markdown_text import in_code, inert
from pipelines.comparison.policies import Compared
from pipelines.comparison.tables import policy_table
from pipelines.gate import Measured, Verdict

FIGURES_TAG, MEASURED_ON_TAG, REPORT_TAG = "align.figures", "align.measured_on", "align.report"


def tags_of(model: Made, report: Made | None) -> dict[str, str]:
    """Identity, lineage, and the figures with what they were measured on."""
    lineage = [
        {"name": model.name(each), "uses": each.uses, "key": each.key, "digest": each.digest} for each in model.chain
    ]
    said = {
        KEY_TAG: model.manifest.key, USES_TAG: model.manifest.uses, DIGEST_TAG: model.manifest.digest,
        "align.run_id": model.run.run_id if model.run is not None else "", "align.recipe": model.recipe or "",
        "align.base": _origin(model), "align.data": json.dumps(_data(model)), "align.lineage": json.dumps(lineage),
    }  # fmt: skip
    if report is not None:
        found = measured(report)
        said |= {
            REPORT_TAG: report.manifest.key, FIGURES_TAG: json.dumps(found.figures),
            MEASURED_ON_TAG: json.dumps(found.on, sort_keys=True),
        }  # fmt: skip
    return said


def stored_figures(version: ModelVersion) -> Measured:
    """What `tags_of` wrote of its figures; none for a version without. Raises UserError where someone changed them."""
    try:
        return Measured(
            TypeAdapter(dict[str, float]).validate_json(version.tags.get(FIGURES_TAG, "{}")),
            TypeAdapter(dict[str, Any]).validate_json(version.tags.get(MEASURED_ON_TAG, "{}")),
        )
    except ValidationError as error:
        raise UserError(
            f"{version.name} version {version.version}: its tags {FIGURES_TAG} and {MEASURED_ON_TAG} are not as they "
            "were written; promote it again with --report, or take conditions without `champion`"
        ) from error


def description(model: Made, report: Made | None, run_link: str | None, alias: str, verdicts: Sequence[Verdict]) -> str:
    """Markdown: what it is, its figures, the gate that it came through, the stages that made it."""
    parts = [_what(model, run_link), *_figures(model, report), *_gate(alias, verdicts), _stages(model)]
    return "\n\n".join(parts)


def _what(model: Made, run_link: str | None) -> str:
    run = ""
    if model.run is not None:
        name = inert(model.run.run_id)
        run = f" of run [{name}]({run_link})" if run_link else f" of run {name}"
    recipe = f", recipe {inert(model.recipe)}" if model.recipe else ""
    rows = [f"{inert(model.name(each))} ({each.metrics['data/rows_train']:,.0f} rows)" for each in _data_stages(model)]
    return "\n".join([
        f"Stage {inert(model.name(model.manifest))}{run}{recipe}.", "", f"- base: {inert(_origin(model))}",
        f"- data: {', '.join(rows) or 'none'}", f"- digest: `{model.manifest.digest}`",
    ])  # fmt: skip


def _figures(model: Made, report: Made | None) -> list[str]:
    """As a list, since tables have no room between their columns on MLflow's pages."""
    if report is None:
        return []
    settings, prompts = report.manifest.fields, report.manifest.metrics["eval/prompts"]
    headings, (values,) = policy_table([Compared.read("", report.folder / "out")])
    before = ", before the merge, to which it is equal but for rounding" if measures_adapter(report, model) else ""
    against = report.manifest.payload["inputs"].get("against")
    wins = f"; wins are counted over the policy of {in_code(model.names.get(against, against[:12]))}" if against else ""
    lines = [f"- {heading}: {value}" for heading, value in zip(headings[1:], values[1:], strict=True)]
    name = in_code(model.name(report.manifest))
    return [
        "### Figures",
        "\n".join(lines),
        f"Measured by {name} (`{report.manifest.key[:12]}`) on {prompts:.0f} held-out prompts"
        f"{before}: completions of up to {settings['max_new_tokens']} tokens at temperature "
        f"{settings['temperature']:g}{wins}. In brackets: 95% intervals.",
    ]


def _gate(alias: str, verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    lines = [
        f"- `{verdict.condition}`: {verdict.got:.4g}"
        + (f", wanted {verdict.wanted:.4g}" if verdict.wanted is not None else ", and there was no champion before")
        + ("" if verdict.passed else ": failed")
        for verdict in verdicts
    ]
    became = f"Became `{alias}` through" if all(verdict.passed for verdict in verdicts) else f"Did not become `{alias}`"
    return [f"### {became}", "\n".join(lines)]


def _stages(model: Made) -> str:
    lines = ["### The stages that made it", ""]
    for each in model.chain:
        name = model.name(each)
        does = "" if name == each.uses else f" ({each.uses})"
        lines.append(f"1. {inert(name)}{does} `{each.key[:12]}`, digest `{each.digest[:12]}`")
    return "\n".join(lines)


def _origin(model: Made) -> str:
    """Where its base was read from; a merge of a merge has several, of which this is the last."""
    bases = [each for each in model.chain if each.uses == "base"]
    if not bases:
        return "no longer in the store"
    about = model.store.folder(bases[-1].uses, bases[-1].key) / "out" / "base.json"
    if not about.exists():
        return bases[-1].key[:12]
    source = str(bases[-1].fields["source"])
    name = source if source.startswith(("hub:", "builtin:")) else Path(source).name
    return f"{name} (licence: {json.loads(about.read_text())['licence']})"


def _data(model: Made) -> Mapping[str, Any]:
    """The content of the files that its data stages read."""
    return {model.name(each): each.payload["content"] for each in _data_stages(model)}


def _data_stages(model: Made) -> list[Manifest]:
    return [each for each in model.chain if "data/rows_train" in each.metrics]
