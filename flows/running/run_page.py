"""What the page of a flow run shows beside its tasks and logs: the plan, how far each stage is, the report, charts.

Only where there is a server whose pages people look at; one that does not answer costs nobody the run, and since
progress is told from a thread of its own, no time either.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from flows.links import mlflow_page
from flows.records import RunRecord
from flows.running.watch import Watcher, so_far
from flows.tracking.tracker import Tracker
from pipelines.comparison.markdown_text import inert
from pipelines.plan import Plan
from pipelines.reasons import Verdict

EVERY_S = 5.0
"""Between two looks at how far the stages are."""


def looked_at() -> bool:
    """Whether the server is one with pages, and none that a single run has started for itself."""
    return bool(get_current_settings().api.url)


def flow_page() -> str | None:
    """The page of this flow run; None where nobody looks (there Prefect's own answer begins with `None/`)."""
    return flow_run.ui_url if looked_at() else None


def show_plan(plan: Plan, said: Mapping[str, Verdict], record: RunRecord, tracker: Tracker) -> None:
    """A table: each stage, whether it is cached or why not, its key, and where MLflow has it."""
    missing = "is fetched or runs" if tracker.fetches else "runs"
    runs = {stage["name"]: stage["mlflow_run_id"] for stage in record.stages}
    rows = [
        {
            "stage": label, "does": plan[label].uses, "plan": "cached" if verdict.cached else missing,
            "why": verdict.reason or verdict.drift, "key": plan[label].key[:12],
            "MLflow": mlflow_page(runs[label]) or "",
        }
        for label, verdict in said.items()
    ]  # fmt: skip
    _tell(lambda: create_table_artifact(rows, key="plan", description=f"The plan of run {inert(record.run_id)}"))


def show_report(summary: str, record: RunRecord, tracker: Tracker) -> None:
    """The end: stages and comparison in Markdown, with links to the stages in MLflow, and the charts."""
    run_id, pages = record.run_id, [(stage["name"], mlflow_page(stage["mlflow_run_id"])) for stage in record.stages]
    if links := [f"[{inert(name)}]({page})" for name, page in pages if page]:
        summary += f"\n\nStages in MLflow: {' · '.join(links)}"
    _tell(lambda: create_markdown_artifact(summary, key="report", description=f"Run {inert(run_id)}"))
    for name, what in (("comparison", "The policies side by side"), ("frontier", "What each policy gained against KL")):
        picture = tracker.file(f"{name}.png")
        if picture.exists():
            _tell(partial(_image, name, f"{what}: run {inert(run_id)}", picture))


def show_decision(text: str, description: str) -> None:
    """What a retraining came to, in Markdown."""
    _tell(lambda: create_markdown_artifact(text, key="decision", description=description))


def _image(name: str, description: str, picture: Path) -> None:
    """Within the artifact itself, so that it is seen by whoever sees the page, MLflow or not."""
    data = base64.b64encode(picture.read_bytes()).decode()
    create_image_artifact(f"data:image/png;base64,{data}", key=name, description=description)


def _tell(say: Callable[[], object]) -> None:
    if looked_at():
        with suppress(PrefectException, HTTPError):
            say()


@dataclass
class _Stage:
    """How far one is, and the context of the task whose page shows it."""

    context: Context
    percent: float = 0.0
    text: str = ""
    told: str = ""
    artifact: UUID | None = None


class OnPage(Watcher):
    """Hears what another watcher hears, and keeps on the page the stages' progress and a link to the run in MLflow.

    `in_mlflow` gives the address there, None as long as MLflow does not have the run.
    """

    def __init__(self, inner: Watcher, in_mlflow: Callable[[], str | None]) -> None:
        super().__init__()
        self.in_mlflow: Callable[[], str | None] | None = in_mlflow
        self.inner, self.logger, self.run_id = inner, inner.logger, inner.run_id
        self._stages: dict[str, _Stage] = {}
        self._over = threading.Event()

    def line(self, label: str, text: str) -> None:
        self.inner.line(label, text)

    def stage(self, label: str, status: str, detail: str = "") -> None:
        self.inner.stage(label, status, detail)

    def progress(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, float]) -> bool:
        stage = self._stages.setdefault(label, _Stage(copy_context()))
        stage.percent = 100 * done / max(total, 1)
        stage.text = so_far(done, total, unit, figures)
        return self.inner.progress(label, done, total, unit, figures)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Tells the page within this block."""
        if not looked_at():
            yield
            return
        run = partial(copy_context().run, self._run)  # or what it says would be on no flow run's page
        thread = threading.Thread(target=run, name="run page", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(EVERY_S)

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._tell_all()
        self._tell_all()

    def _tell_all(self) -> None:
        if self.in_mlflow is not None and (page := self.in_mlflow()) is not None:
            self.in_mlflow = None
            what = "Its settings, metrics, models and files"
            _tell(lambda: create_link_artifact(page, link_text="This run in MLflow", key="mlflow", description=what))
        for label, stage in list(self._stages.items()):
            if stage.text != stage.told:
                stage.told = stage.text
                with suppress(PrefectException, HTTPError):
                    stage.context.run(_tell_progress, label, stage)


def _tell_progress(label: str, stage: _Stage) -> None:
    said = inert(f"{label}: {stage.text}")
    if stage.artifact is None:
        key = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        made = create_progress_artifact(stage.percent, key=f"progress-{key}", description=said)
        assert isinstance(made, UUID)
        stage.artifact = made
    else:
        update_progress_artifact(stage.artifact, stage.percent, description=said)
