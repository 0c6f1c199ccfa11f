"""The end of a run: stages and policies as tables, for the terminal, for Prefect and for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from artifacts.store import Store
from flows.commands.comparison_text import markdown, markdown_findings
from flows.home import align_home
from flows.links import mlflow_page
from flows.records import RunRecord
from flows.tracking.comparison_tables import write_tables
from flows.tracking.headlines import run_figures
from pipelines.comparison.charts import chart
from pipelines.comparison.comparison import Comparisons
from pipelines.comparison.frontier import frontier
from pipelines.comparison.markdown_text import inert
from pipelines.comparison.page import page
from pipelines.comparison.policies import Compared

if TYPE_CHECKING:
    from flows.tracking.tracker import Tracker

HEADLINES = (
    "judge/win_rate", "eval/check_rate", "eval/reward_accuracy", "validation/score", "objective/scores",
    "rewards/accuracies", "validation/loss", "merge/kl_to_saved",
    "eval/score_mean", "eval/preference_accuracy", "train/loss", "data/rows_train", "model/parameters",
)  # fmt: skip
"""Which metric says most of a stage, the first that it has."""


def policies_of(record: RunRecord) -> list[Compared]:
    """The evaluated policies of a run, in its order; `eval_dpo` is shown as `dpo`."""
    names = [_policy_name(stage) for stage in record.reports]
    return [
        Compared.read(name if names.count(name) == 1 else stage, folder)
        for name, (stage, folder) in zip(names, record.reports.items(), strict=True)
    ]


def comparisons_of(record: RunRecord) -> Comparisons:
    """The evaluated policies of a run, compared with those that were evaluated alike."""
    return Comparisons.of(policies_of(record), Store(align_home()))


def _policy_name(stage: str) -> str:
    for prefix in ("eval_", "evaluate_"):
        stage = stage.removeprefix(prefix)
    return stage


def headline(stage: Mapping[str, Any]) -> str:
    """The one figure to show beside a stage."""
    if stage["error"]:
        return str(stage["error"]).splitlines()[0][:90]
    for name in HEADLINES:
        if name in stage["metrics"]:
            value = stage["metrics"][name]
            return f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.3f}"
    return ""


def conclude(record: RunRecord, tracker: Tracker, store: Store, ui: str | None) -> str:
    """Log the comparison, close the parent run, and give the Markdown summary with links."""
    comparisons = comparisons_of(record)
    policy = _policy_name(list(record.reports)[-1]) if record.reports else ""
    links = tracker.compare_links(comparisons) if comparisons.each else {}
    if comparisons.each:
        _write_comparison(comparisons, record, tracker, links)
    summary = _markdown(record, comparisons, {"Prefect flow run": ui, **_in_mlflow(record, links)})
    failed = any(stage["status"] == "failed" for stage in record.stages)
    status = "FAILED" if failed else "FINISHED"
    tracker.end(status, record.stages, summary=summary, metrics=run_figures(record), policy=policy)
    store.digests.save()
    return summary


def _in_mlflow(record: RunRecord, links: Mapping[str, str]) -> dict[str, str | None]:
    """Pages of a server that is there; what only may be there later is for pages that are kept."""
    own = mlflow_page(record.mlflow_run_id)
    return {"MLflow run": own, **links} if own is not None else {}


def _write_comparison(comparisons: Comparisons, record: RunRecord, tracker: Tracker, links: Mapping[str, str]) -> None:
    """As Markdown, as tables, as a page that stands alone, and as pictures of the first held-out set."""
    tracker.file("comparison.md").write_text(markdown(comparisons))
    write_tables(comparisons, tracker.run.files)
    tracker.file("comparison.html").write_text(page(comparisons, record.run_id, links))
    first = comparisons.each[0]
    for name, figure in (("comparison.png", chart(first.policies)), ("frontier.png", frontier(first))):
        if figure is not None:
            figure.savefig(tracker.file(name))


def _markdown(record: RunRecord, comparisons: Comparisons, links: Mapping[str, str | None]) -> str:
    lines = [f"# {inert(record.run_id)}", "", "| stage | status | seconds | figure | key |", "|---|---|---|---|---|"]
    for stage in record.stages:
        lines.append(
            f"| {inert(stage['name'])} | {stage['status']} | {stage['seconds']:.0f} | {inert(headline(stage))} | "
            f"`{stage['key'][:12]}` |"
        )
    if comparisons.each:
        lines += ["", markdown_findings(comparisons)]
    lines += ["", *(f"[{name}]({link})" for name, link in links.items() if link)]
    return "\n".join(lines)
