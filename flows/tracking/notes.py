"""What MLflow shows as a run's description: a few lines of Markdown, with links to all that belongs to it.

MLflow folds a description after its first lines, so the links come first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlflow.tracking import MlflowClient

from flows.tracking.compare_links import Place
from flows.tracking.experiment_page import RUNS, view_page
from pipelines.comparison.markdown_text import inert

NOTE_TAG = "mlflow.note.content"
NOTE_LIMIT = 7900
VERSION_TAG = "align.model_version"
FILES = {
    "comparison.html": "report", "evaluation.json": "evaluation", "completions.json": "completions",
    "comparison.png": "chart", "frontier.png": "gain against KL", "samples.json": "samples while training",
    "curves.png": "curves", "output/README.md": "model card", "plan.json": "plan", "stage/manifest.json": "manifest",
}  # fmt: skip
"""Artifacts that a person opens, and what they are."""


def run_page(place: Place) -> str:
    """MLflow's page of a run, as its own pages link it."""
    return f"#/experiments/{place.experiment}/runs/{place.run}"


def run_note(
    place: Place, files: Iterable[str], stages: Sequence[Mapping[str, Any]], find: Callable[[str], Place | None],
    facts: Mapping[str, Any],
) -> str:  # fmt: skip
    """Of a pipeline run: its files, its stages' runs, cached ones too, and the summary. `find` takes a stage's key."""
    links = [*_files(place, files), *_prefect(facts), f"[all runs of this recipe]({view_page(place.experiment, RUNS)})"]
    lines = [" · ".join(links)]
    if made := [_stage(stage, find(stage["key"])) for stage in stages]:
        lines.append("Stages: " + " · ".join(made))
    summary = facts["summary"].removeprefix(f"# {facts['name']}").lstrip()  # the page's own heading says it
    return _cut("\n\n".join([*lines, _aligned(summary)]))


def stage_note(
    place: Place, files: Iterable[str], parent: Place | None, find: Callable[[str], Place | None],
    facts: Mapping[str, Any],
) -> str:  # fmt: skip
    """Of a stage's run: the pipeline run that made it, the runs of the stages that it was made from, its files."""
    name = inert(facts["name"]) + ("" if facts["name"] == facts["uses"] else f" ({facts['uses']})")
    of = f"[{facts['run_id']}]({run_page(parent)})" if parent is not None else facts["run_id"]
    lines = [f"Stage **{name}** of run {of}, key `{facts['key'][:12]}`."]
    if inputs := facts.get("inputs"):
        made_from = [f"{field}: {_linked(one['name'], find(one['key']))}" for field, one in inputs.items()]
        lines.append("Made from " + " · ".join(made_from))
    if links := [*_files(place, files), *_prefect(facts)]:
        lines.append(" · ".join(links))
    return _cut("\n\n".join(lines))


def add_version(client: MlflowClient, run: str, model: str, number: str) -> None:
    """Let a run say which version of a registered model came of it: in its tags, and first in its description."""
    client.set_tag(run, VERSION_TAG, f"{model}/{number}")
    client.set_tag(run, NOTE_TAG, with_version(client, run, client.get_run(run).data.tags.get(NOTE_TAG, "")))


def with_version(client: MlflowClient, run: str, note: str) -> str:
    """A description that begins with the version that came of the run, if there is one."""
    model, _, number = client.get_run(run).data.tags.get(VERSION_TAG, "").rpartition("/")
    line = f"Registered as [{model} version {number}](#/models/{model}/versions/{number})"
    return _cut(f"{line}\n\n{note}") if model and line not in note else note


def _stage(stage: Mapping[str, Any], place: Place | None) -> str:
    return f"{_linked(stage['name'], place)} {stage['status']}"


def _linked(name: str, place: Place | None) -> str:
    return f"[{inert(name)}]({run_page(place)})" if place is not None else inert(name)


def _files(place: Place, files: Iterable[str]) -> list[str]:
    there = set(files)
    return [f"[{said}]({run_page(place)}/artifacts/{name})" for name, said in FILES.items() if name in there]


def _prefect(facts: Mapping[str, Any]) -> list[str]:
    return [f"[Prefect flow run]({facts['ui']})"] if facts.get("ui") else []


def _aligned(markdown: str) -> str:
    """With its tables as text: MLflow's descriptions leave no room between the columns of a table."""
    parts: list[str] = []
    for of_table, lines in itertools.groupby(markdown.split("\n"), lambda line: line.startswith("|")):
        if not of_table:
            parts += lines
            continue
        rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        del rows[1]  # the rule below the headings
        cells = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        parts += ["", "```", *cells, "```", ""]
    return "\n".join(parts)


def _cut(text: str) -> str:
    """As much of it as MLflow takes, to the end of a line."""
    if len(text) <= NOTE_LIMIT:
        return text
    return text[: text.rindex("\n", 0, NOTE_LIMIT - 60)] + "\n\n... comparison.md, among the artifacts, has the rest"
