"""What MLflow is told of a run beside its curves: by what its tables, descriptions, views and artifacts are read."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from artifacts.store import Store
from flows.cli import main
from flows.tracking.experiment_page import MARK, POLICIES, RUNS, SHARED, TRAINING, furnish
from flows.tracking.mlflow_server import MlflowServer
from flows.tracking.tracked_run import TrackedRun
from flows.tracking.tracked_stage import TrackedStage
from tests.conftest import recipe_writer
from tests.flows.made_runs import PREFECT, MadeRuns

FIGURES = {"check_rate": 0.5, "check_rate_low": 0.4, "check_rate_high": 0.6, "win_rate": 0.75}
STARTED = "2023-11-14T22:13:20+00:00"


class Told:
    """A run of `chain()` with another beta, in the MLflow of a home of its own; registered as `champion`."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.store = Store(folder / "home")
        made = MadeRuns(self.store, recipe_writer(folder / "project"), model)
        self.run_id = made(FIGURES, tracked=False, dpo__beta=0.2)
        for file in self.store.home.glob("tracking/dpo-*/facts.json"):  # as of one that is sent long after it was made
            file.write_text(json.dumps({**json.loads(file.read_text()), "started": STARTED}))
        self.parent = made.tell(self.run_id, "dpo.beta=0.2")
        assert main(["promote", f"{self.run_id}:merge", "--as", "champion"]) == 0
        self.server = MlflowServer.reach(self.store.home, "recipe")
        self.client: MlflowClient = self.server.client
        self.plan = made.plans[self.run_id]

    def run(self, stage: str) -> Run:
        planned = self.plan[stage]
        run = TrackedStage(self.store, planned.uses, planned.key).sent(self.server.name).run_id
        assert run is not None
        return self.client.get_run(run)

    @property
    def pipeline(self) -> Run:
        return self.client.get_run(self.parent)

    def table(self, run: str, name: str) -> dict[str, Any]:
        return json.loads(Path(self.client.download_artifacts(run, name)).read_text())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Any) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Told(folder, tiny_llama.path)


def note(run: Run) -> str:
    return run.data.tags["mlflow.note.content"]


def page(run: Run) -> str:
    return f"(#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"


def tables(run: Run) -> set[str]:
    return {each["path"] for each in json.loads(run.data.tags["mlflow.loggedArtifacts"])}


def test_a_run_is_read_by_few_parameters_and_its_headline_figures(told):
    run = told.pipeline
    assert run.data.params == {
        "method": "sft, reward, dpo", "policy": "eval", "base": "builtin:tiny-llama",
        "data": "pairs.jsonl, rows.jsonl", "changes": "dpo.beta=0.2", "seed": "0",
        "stages": "base, rows, pairs, sft, reward, dpo, merge, eval",
    }  # fmt: skip
    assert run.data.metrics["eval/check_rate"] == 0.5 and run.data.metrics["cost/seconds"] == 8.0
    assert run.data.metrics["cost/tokens"] == 3 * 48.0
    assert run.data.tags["mlflow.source.name"] == "recipe.yaml dpo.beta=0.2"
    assert run.info.start_time <= run.info.end_time


def test_an_evaluation_says_what_trained_its_policy_and_a_stage_what_it_hangs_on(told):
    evaluation, reward = told.run("eval"), told.run("reward")
    assert (evaluation.data.params["method"], evaluation.data.params["policy"]) == ("dpo", "dpo")
    assert evaluation.data.params["data"] == "pairs.jsonl, rows.jsonl"
    assert (reward.data.params["method"], reward.data.params["data"]) == ("reward", "pairs.jsonl")
    assert "method" not in told.run("base").data.params
    trained = told.client.search_runs([evaluation.info.experiment_id], "tags.`align.trains` = 'yes'")
    assert {run.info.run_name for run in trained} == {"sft", "reward", "dpo"}


def test_descriptions_lead_from_the_run_to_its_stages_and_back_and_to_prefect(told):
    said, dpo = note(told.pipeline), told.run("dpo")
    assert all(f"[{stage.label}]{page(told.run(stage.label))}" in said for stage in told.plan.stages)
    assert f"[{told.run_id}]{page(told.pipeline)}" in note(dpo)
    assert f"policy: [sft]{page(told.run('sft'))}" in note(dpo) and f"data: [pairs]{page(told.run('pairs'))}" in note(
        dpo
    )
    assert all(f"[Prefect flow run]({PREFECT})" in each for each in (said, note(dpo)))
    files = page(told.pipeline)[:-1] + "/artifacts/"
    assert f"[report]{files}comparison.html)" in said and f"[completions]{files}completions.json)" in said
    assert f"[model card]{page(told.run('merge'))[:-1]}/artifacts/output/README.md)" in note(told.run("merge"))
    assert f"[curves]{page(dpo)[:-1]}/artifacts/curves.png)" in note(dpo)


def test_tables_in_a_description_are_text_whose_columns_stand_apart(told):
    lines = note(told.pipeline).split("\n")
    headings = next(line for line in lines if line.startswith("policy"))
    assert headings.split() == ["policy", "check", "rate", "win", "rate"] and "|---" not in note(told.pipeline)
    values = lines[lines.index(headings) + 1]
    assert values.startswith("eval ") and values.index("50.0%") == headings.index("check rate")
    assert lines[lines.index(headings) - 1] == "```"


def test_tables_are_where_mlflow_opens_them_as_such(told):
    run, evaluation = told.pipeline, told.run("eval")
    assert tables(run) == {"evaluation.json", "costs.json", "completions.json"}
    assert told.table(run.info.run_id, "completions.json") == {
        "columns": ["prompt", "eval"], "data": [["Say five.", "five"]]
    }  # fmt: skip
    assert told.table(run.info.run_id, "evaluation.json")["data"][0][:2] == ["eval", "50.0% [40.0, 60.0%]"]
    assert tables(evaluation) == {"evaluation.json", "completions.json"}
    figures = told.table(evaluation.info.run_id, "evaluation.json")
    assert figures["columns"] == ["figure", "value", "low", "high", "prompts"]
    assert figures["data"] == [["check_rate", 0.5, 0.4, 0.6, 1.0], ["win_rate", 0.75, None, None, 1.0]]


def test_a_figure_without_a_curve_is_a_bar_beside_curves_over_samples_seen(told):
    dpo = told.run("dpo").info.run_id
    assert [one.step for one in told.client.get_metric_history(dpo, "train/loss")] == [8, 16, 24]
    assert [one.step for one in told.client.get_metric_history(dpo, "cost/tokens")] == [0]


def test_a_run_that_is_sent_late_keeps_the_time_at_which_it_began_and_ended(told):
    info = told.run("dpo").info
    manifest = told.store.folder("dpo", told.plan["dpo"].key) / "manifest.json"
    assert info.start_time == 1_700_000_000_000
    assert abs(info.end_time - manifest.stat().st_mtime * 1000) < 60_000


def test_data_sets_are_inputs_with_our_digest_and_what_they_are_for(told):
    def inputs(run: Run) -> dict[str, tuple[str, str]]:
        return {
            one.dataset.name: (one.dataset.digest, one.tags[0].value) for one in run.inputs.dataset_inputs
        }  # fmt: skip

    pairs = told.plan["pairs"]
    assert inputs(told.pipeline)["pairs.source"] == (pairs.payload["content"]["source"]["sha256"][:36], "training")
    assert inputs(told.pipeline)["pairs.test_source"][1] == "held-out"
    assert inputs(told.run("dpo")) == {"pairs": (pairs.key[:36], "training")}
    assert inputs(told.run("eval")) == {"pairs": (pairs.key[:36], "held-out")}


def test_a_version_and_its_runs_lead_to_each_other(told):
    version = told.client.get_model_version("recipe", "1")
    assert version.run_id == told.run("merge").info.run_id and page(told.pipeline) in version.description
    for run in (told.run("merge"), told.pipeline):
        assert run.data.tags["align.model_version"] == "recipe/1"
        assert note(run).startswith("Registered as [recipe version 1](#/models/recipe/versions/1)\n\n")
        assert run.info.run_id in note(run)  # what was said before is still there


def test_saved_views_have_the_columns_that_the_runs_have(told):
    experiment = told.client.get_experiment(told.pipeline.info.experiment_id)
    runs = told.client.search_runs([experiment.experiment_id])
    names = {f"params.`{name}`" for run in runs for name in run.data.params}
    for view, least in ((RUNS, 5), (POLICIES, 5), (TRAINING, 4)):
        value = experiment.tags[SHARED + view]
        packed = json.loads(value)["state"].removeprefix("deflate;")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        assert {column for column in state["selectedColumns"] if column.startswith("params.")} <= names
        found = told.client.search_runs([experiment.experiment_id], state["searchFilter"])
        shown = {f"metrics.`{name}`" for run in found for name in run.data.metrics}
        assert found and shown & set(state["selectedColumns"]) and len(state["selectedColumns"]) > least
        assert len(value) <= 5000 and f"viewStateShareKey={view}" in experiment.tags["mlflow.note.content"]


def test_what_someone_made_of_a_view_stays(told):
    experiment = told.pipeline.info.experiment_id
    told.client.set_experiment_tag(experiment, SHARED + RUNS, "mine")
    furnish(told.client, experiment)
    assert told.client.get_experiment(experiment).tags[SHARED + RUNS] == "mine"
    told.client.set_experiment_tag(experiment, MARK, "0")  # made by an earlier version of ours
    furnish(told.client, experiment)
    assert told.client.get_experiment(experiment).tags[SHARED + RUNS] != "mine"


def test_a_description_that_is_too_long_ends_with_a_whole_line(told):
    run = TrackedRun(told.store.home, told.run_id)
    run.end("FINISHED", summary="a line of the summary\n" * 1000)
    run.sent(told.server.name).unmark("complete")
    run.close(told.server, [])
    said = note(told.pipeline)
    assert said.startswith("Registered as ")  # which it was before it was described again
    assert len(said) < 8000 and said.endswith(
        "a line of the summary\n\n... comparison.md, among the artifacts, has the rest"
    )
