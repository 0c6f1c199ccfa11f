"""Prefect's pages in a real browser: a form filled in and sent, a run cancelled, one scheduled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import expect

from tests.e2e.browser import Browser, browser
from tests.e2e.conftest import Shop
from tests.e2e.prefect_server import Prefect
from tests.e2e.servers import eventually, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.pages]
STEPS = '{"sft.max_steps": 4, "dpo.max_steps": 4, "reward.max_steps": 4, "reward.eval_rows": 4}'


class Pages:
    """`align up`, and a browser that looks at its pages."""

    def __init__(self, folder: Path, seen: Browser) -> None:
        self.shop, self.seen, self.page = Shop(folder), seen, seen.page
        self.ports = [str(free_port()), str(free_port())]
        up = self.shop.align("up", "--prefect-port", self.ports[0], "--mlflow-port", self.ports[1], "--limit", "2")
        assert up.status == 0, up.err
        self.prefect = f"http://127.0.0.1:{self.ports[0]}"

        self.server = Prefect(self.shop.environment)
        self.server.api = f"{self.prefect}/api"

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        return self.server.call(path, body, method)

    def state(self, flow_run: str) -> str:
        return str(self.api(f"/flow_runs/{flow_run}")["state_name"])

    def open_deployment(self, name: str) -> None:
        self.page.goto(f"{self.prefect}/deployments")
        self.page.get_by_placeholder("Search deployments").fill(name)  # a page of them has ten
        self.page.get_by_role("link", name=name, exact=True).first.click()
        expect(self.seen.button("Run")).to_be_visible()

    def open_form(self, name: str, first: str = "Base model") -> None:
        self.open_deployment(name)
        self.seen.button("Run").click()
        self.page.get_by_text("Custom run").click()
        expect(self.seen.field(first)).to_be_visible()

    def submit(self) -> str:
        """Send the form; the id of the flow run, whose page opens."""
        self.seen.button("Submit").click()
        self.page.wait_for_url(re.compile(r"tab=Runs|flow-run/"))
        self.page.locator("a[href*='/flow-run/']").first.click()
        self.page.wait_for_url(re.compile("/flow-run/"))
        return self.page.url.rsplit("/", 1)[-1].partition("?")[0]

    def trigger(self, name: str, **parameters: Any) -> str:
        """What Submit sends."""
        found = self.api(f"/deployments/name/{name}/{name}")["id"]
        return str(self.api(f"/deployments/{found}/create_flow_run", {"parameters": parameters})["id"])

    def close(self) -> None:
        self.shop.align("down")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    with browser("prefect", folder / "pictures") as seen:
        pages = Pages(folder, seen)
        yield pages
        pages.close()


def test_a_form_is_filled_in_and_its_run_seen_to_its_end(pages: Pages) -> None:
    pages.open_form("align-dpo")
    pages.seen.picture("form", height=3400)
    pages.seen.field("Base model").fill("builtin:tiny-llama")
    pages.seen.field("Beta", "input").fill("0.25")
    pages.seen.field("Held-out prompts", "input").fill("8")
    pages.seen.field("Other settings").fill(STEPS)
    flow_run = pages.submit()
    expect(pages.page.get_by_text("sft: starts")).to_be_visible(timeout=240_000)
    pages.seen.picture("run-in-progress")
    eventually(lambda: pages.state(flow_run) == "Completed", 600)
    pages.page.reload()
    pages.page.get_by_text("Artifacts", exact=True).last.click()
    for name in ("plan", "report", "comparison"):
        expect(pages.page.get_by_text(name, exact=True).first).to_be_visible()
    pages.seen.picture("run-finished")
    run = pages.page.url
    for name, text in {"plan": "never run", "report": "eval_dpo", "comparison": "side by side"}.items():
        pages.page.goto(run)
        pages.page.get_by_text("Artifacts", exact=True).last.click()
        pages.page.get_by_role("link", name=name).first.click()
        expect(pages.page.get_by_text(text).first).to_be_visible()
        pages.seen.picture(name, height=1600)
    assert pages.api(f"/flow_runs/{flow_run}")["parameters"]["beta"] == 0.25


def test_methods_are_compared_on_the_runs_page_and_side_by_side_in_mlflow(pages: Pages) -> None:
    compared = ["dpo", "kto", "orpo", "ppo"]
    overrides = {f"{uses}.max_steps": 12 for uses in ("sft", "reward", "dpo", "kto", "orpo")}
    overrides |= {"ppo.total_episodes": 48, "ppo.batch_size": 16, "ppo.max_new_tokens": 12}
    form = {"base": "builtin:tiny-llama", "methods": compared, "held_out": 24, "overrides": overrides}
    flow_run = pages.trigger("align-compare", **form)
    eventually(lambda: pages.state(flow_run) == "Completed", 900)
    pages.page.goto(f"{pages.prefect}/runs/flow-run/{flow_run}")
    expect(pages.page.get_by_text("Completed").first).to_be_visible()
    pages.seen.picture("compare-run")
    report = shown(pages, flow_run, "report")
    for name, runs, metrics in (
        ("evaluations", [f"eval_{uses}" for uses in compared], ["eval/win_rate", "eval/kl_to_reference"]),
        ("trainings", ["sft", *compared], ["cost/seconds", "train/loss"]),
    ):
        link = re.search(rf"\[MLflow: the {name}\]\(([^)]+)\)", report)
        assert link is not None, report
        pages.seen.open(link[1])
        pages.seen.shows("Comparing", *runs)
        pages.seen.picture(f"mlflow-compares-{name}", height=2000)
        for metric in metrics:
            pages.seen.scroll_to(metric, pages.page.get_by_role("grid").last)
        pages.seen.picture(f"mlflow-metrics-of-{name}")
    link = re.search(r"http[^)]+/#/runs/\w+", shown(pages, flow_run, "mlflow"))
    assert link is not None
    pages.seen.open(link[0])
    pages.page.wait_for_url("**/#/experiments/*/runs/*")
    run = pages.page.url
    for name in ("comparison.png", "frontier.png"):
        pages.seen.open(f"{run}/artifacts/{name}")
        pages.seen.shows_picture(name)
        pages.seen.picture(f"mlflow-{name.replace('.', '-')}")


def test_a_merged_model_has_a_card_in_mlflow_that_says_how_it_was_made(pages: Pages) -> None:
    answer = pages.shop.align("run", "pipelines/tiny.yaml", "--until", "merge", "--json", "dpo.max_steps=8")
    assert answer.status == 0, answer.err
    run = answer.stage("merge")["mlflow_run_id"]
    mlflow = f"http://127.0.0.1:{pages.ports[1]}"
    experiment = MlflowClient(mlflow).get_run(run).info.experiment_id
    pages.seen.open(f"{mlflow}/#/experiments/{experiment}/runs/{run}/artifacts/output/README.md")
    pages.seen.shows("An aligned model", "The stages that made it", "The merge")
    pages.seen.picture("model-card", height=2000)


def shown(pages: Pages, flow_run: str, key: str) -> str:
    """What a run's page has under this name."""
    asked = {"artifacts": {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": [key]}}}
    return str(pages.api("/artifacts/filter", asked)[0]["data"])


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("align", ("Recipe", "Other settings", "Sweep", "How to run", "Make afresh", "Where to stop")),
        ("align-compare", ("Base model", "Methods", "Seeds", "Branch from an earlier run", "Held-out prompts")),
        ("align-retrain", ("Recipe", "Registered model", "Challenger", "Gate", "Other settings")),
    ],
)
def test_a_form_has_each_field_under_its_title_with_what_it_is_for(
    pages: Pages, name: str, titles: tuple[str, ...]
) -> None:
    pages.open_form(name, titles[0])
    pages.seen.shows(*titles)
    pages.seen.picture(f"form-{name}", height=3400)
    assert not pages.page.get_by_text("None", exact=True).count(), "a choice of types, which a form can't show"


def test_what_is_wrong_is_refused_in_the_words_of_the_command_line(pages: Pages) -> None:
    pages.open_form("align-sft")
    pages.seen.field("Other settings").fill('{"sft.epoch": 2}')
    flow_run = pages.submit()
    eventually(lambda: pages.state(flow_run) == "Failed", 120)
    pages.page.reload()
    expect(pages.page.get_by_text("sft.epoch: no such field; did you mean 'epochs'?").first).to_be_visible()
    pages.seen.picture("refused")
    said = pages.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
    assert "Traceback" not in str(said)


def test_a_run_is_cancelled_by_its_button(pages: Pages) -> None:
    pages.open_form("align-sft")
    pages.seen.field("Base model").fill("builtin:tiny-llama")
    pages.seen.field("Other settings").fill('{"sft.max_steps": 3000}')
    flow_run = pages.submit()
    eventually(lambda: pages.shop.checkpoints("sft"), 240)
    pages.seen.button("Cancel").click()
    pages.seen.button("Confirm").click()
    eventually(lambda: pages.state(flow_run) == "Cancelled", 90)
    pages.page.reload()
    expect(pages.page.get_by_text("Cancelled").first).to_be_visible()
    pages.seen.picture("cancelled")


def test_a_schedule_that_is_added_on_the_page_fires(pages: Pages) -> None:
    pages.open_deployment("align-reward")
    pages.page.get_by_text("Schedule", exact=True).first.click()
    pages.page.get_by_placeholder("Enter a unique identifier for this schedule").fill("often")
    pages.page.locator("xpath=//label[normalize-space()='Value']/following::input[1]").fill("1")
    pages.seen.picture("schedule")
    pages.seen.button("Save").click()
    found = pages.api("/deployments/name/align-reward/align-reward")["id"]

    def fired() -> list[str]:
        asked = {"deployments": {"id": {"any_": [found]}}, "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        return [run["id"] for run in pages.api("/flow_runs/filter", asked) if run["auto_scheduled"]]

    assert eventually(fired, 240)
    pages.page.goto(f"{pages.prefect}/deployments/deployment/{found}")
    expect(pages.page.get_by_text("often", exact=True)).to_be_visible()
    expect(pages.page.get_by_text("auto-scheduled").first).to_be_visible()
    pages.seen.picture("scheduled")
    for schedule in pages.api(f"/deployments/{found}")["schedules"]:
        pages.api(f"/deployments/{found}/schedules/{schedule['id']}", method="DELETE")
