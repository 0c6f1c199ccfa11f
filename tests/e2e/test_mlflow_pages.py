"""MLflow's own pages, as a person sees them: the experiment, its views, two runs compared, a report that opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.store import Store
from flows.cli import main
from flows.tracking.compare_links import Place, compare_page
from flows.tracking.experiment_page import POLICIES, RUNS, TRAINING, view_page
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.system_metrics import SYSTEM
from flows.tracking.tracked_stage import TrackedStage
from tests.conftest import recipe_writer, write_rows
from tests.e2e.browser import Browser, browser
from tests.e2e.mlflow_servers import Mlflow
from tests.flows.made_runs import MadeRuns

pytestmark = [pytest.mark.e2e, pytest.mark.pages]
GOOD = {"check_rate": 0.5, "check_rate_low": 0.4, "check_rate_high": 0.6, "score_mean": 1.25}
BETTER = {"check_rate": 0.75, "check_rate_low": 0.7, "check_rate_high": 0.8, "score_mean": 1.5}


class Pages:
    """A server that has two runs of one recipe, the second with another beta and registered; and a browser."""

    def __init__(self, mlflow: Mlflow, browser: Browser, home: Path, folder: Path, model: Path) -> None:
        self.uri, self.browser, self.store = mlflow.uri, browser, Store(home)
        made = MadeRuns(self.store, recipe_writer(folder / "project"), model)
        self.first, self.second = made(GOOD, tracked=False), made(BETTER, tracked=False, dpo__beta=0.2)
        self.plan = made.plans[self.second]
        result = self.store.folder("dpo", self.plan["dpo"].key)
        write_rows(result / SYSTEM, [
            {"step": n, "optimizer_step": n, "time": 1.7e9 + n, "metrics": {"system/cpu_utilization_percentage": 50.0}}
            for n in range(3)
        ])  # fmt: skip
        self.runs = [made.tell(self.first), made.tell(self.second, "dpo.beta=0.2")]
        assert main(["promote", f"{self.second}:merge", "--as", "champion"]) == 0
        self.server = MlflowServer.reach(home, "recipe")
        self.experiment = self.server.experiment("recipe")

    def open(self, fragment: str) -> Browser:
        self.browser.open(f"{self.uri}/{fragment}")
        return self.browser

    def run(self, run: str, more: str = "") -> Browser:
        return self.open(f"#/experiments/{self.experiment}/runs/{run}{more}")

    def stage(self, name: str) -> str:
        planned = self.plan[name]
        run = TrackedStage(self.store, planned.uses, planned.key).sent(self.server.name).run_id
        assert run is not None
        return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Any) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    mlflow = Mlflow(folder / "mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", mlflow.uri)
        try:
            mlflow.start()
            with browser("mlflow", folder / "pictures") as seen:
                seen.page.set_viewport_size({"width": 1680, "height": 1050})
                yield Pages(mlflow, seen, folder / "home", folder, tiny_llama.path)
        finally:
            mlflow.stop()


def test_a_view_has_one_line_for_each_run_with_what_was_done_and_what_came_of_it(pages: Pages) -> None:
    browser = pages.open(view_page(pages.experiment, RUNS))
    browser.shows(pages.first, pages.second, "sft, reward, dpo", "dpo.beta=0.2", "builtin:tiny-llama", "0.75")
    browser.picture("runs")
    assert browser.page.get_by_text("eval/check_rate").first.is_visible()


def test_views_are_listed_by_name_where_someone_looks_for_them(pages: Pages) -> None:
    browser = pages.open(f"#/experiments/{pages.experiment}/runs")
    browser.shows(pages.first)
    browser.picture("experiment")
    browser.page.get_by_test_id("saved-views-trigger").click()
    browser.shows("Runs of the recipe", "Policies, evaluated", "Training curves")
    browser.picture("views")
    browser.page.get_by_text("Policies, evaluated").last.click()  # in the list, not in the description
    browser.shows("eval", "dpo", "0.75")
    browser.picture("policies")
    assert POLICIES in browser.page.url


def test_training_curves_lie_over_each_other_against_samples_seen(pages: Pages) -> None:
    browser = pages.open(view_page(pages.experiment, TRAINING))
    browser.shows("side by side", "train/loss")
    browser.picture("curves")


def test_two_runs_are_chosen_and_compared(pages: Pages) -> None:
    browser = pages.open(view_page(pages.experiment, RUNS))
    browser.shows(pages.first, pages.second)
    for box in browser.page.locator(".ag-row .ag-selection-checkbox").all()[:2]:
        box.click()
    browser.page.get_by_test_id("runs-compare-button").click()
    browser.shows("Comparing 2 Runs from 1 Experiment", "dpo.beta=0.2")
    browser.picture("compared")
    places = [Place(run, pages.experiment) for run in pages.runs]
    browser.open(compare_page(pages.uri, places))
    browser.shows("Comparing 2 Runs from 1 Experiment")


def test_a_run_leads_to_its_report_and_to_its_stages_and_these_lead_back(pages: Pages) -> None:
    browser = pages.run(pages.runs[1])
    browser.shows("Registered as", "Prefect flow run", "report")
    browser.page.get_by_text("Show more").click()  # MLflow folds what is long
    browser.shows("Stages:", "dpo")
    browser.picture("run")
    browser.follow("report")
    browser.shows("comparison.html")
    browser.page.frame_locator("iframe").get_by_text("Quality").first.wait_for()
    browser.picture("report", height=2400)
    pages.run(pages.runs[1]).follow("dpo")
    browser.shows("Made from", "beta")
    browser.picture("stage")
    browser.follow(pages.second)
    browser.shows("Registered as")


@pytest.mark.parametrize(("name", "texts"), [
    ("completions.json", ("prompt", "Say five.", "View as table")),
    ("evaluation.json", ("check rate", "75.0% [70.0, 80.0%]")),
    ("comparison.md", ("policy", "check rate")),
    ("recipe.yaml", ("stages", "tiny-llama")),
    ("plan.json", ("inputs", "fields")),
])  # fmt: skip
def test_files_of_a_run_open_as_what_they_are(pages: Pages, name: str, texts: tuple[str, ...]) -> None:
    browser = pages.run(pages.runs[1], f"/artifacts/{name}")
    browser.shows(*texts)
    browser.picture(name.replace(".", "-"))


def test_a_chart_opens_as_a_picture(pages: Pages) -> None:
    browser = pages.run(pages.runs[1], "/artifacts/comparison.png")
    browser.shows_picture("comparison.png")
    browser.picture("comparison-png")


def test_a_stages_manifest_opens(pages: Pages) -> None:
    browser = pages.run(pages.stage("merge"), "/artifacts/stage/manifest.json")
    browser.shows("manifest.json", "digest", "uses")
    browser.picture("manifest-json")


def test_what_a_stage_took_of_the_machine_is_on_mlflows_page_for_that(pages: Pages) -> None:
    browser = pages.run(pages.stage("dpo"), "/system-metrics")
    browser.shows("cpu_utilization_percentage")
    browser.picture("system")


def test_a_version_leads_to_its_run_and_the_run_to_the_version(pages: Pages) -> None:
    browser = pages.open("#/models/recipe/versions/1")
    browser.shows("Source Run", "champion", pages.second)
    browser.picture("version")
    pages.run(pages.stage("merge")).shows("Registered models", "v1", "model card")
    browser.picture("merge")
