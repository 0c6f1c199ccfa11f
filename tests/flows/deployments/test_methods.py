"""The forms of the methods, and the runs that a filled-in one asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.errors import UserError
from artifacts.store import Store
from flows.align import align
from flows.commands.planning import plan_of
from flows.deployments.form_fields import MOST_TRAININGS, Shown
from flows.deployments.methods import FLOWS, align_compare, compared, wanted_of
from flows.deployments.serving import deployments
from flows.records import RunRecord
from flows.retrain import align_retrain
from flows.tracking.mlflow_server import MlflowServer
from pipelines.forms import methods
from tasks.registry import stage_class
from tests.conftest import ROOT

FORMS = {**FLOWS, "compare": align_compare, "any recipe": align, "retrain": align_retrain}


def fields_of(name: str) -> dict[str, dict[str, Any]]:
    return FORMS[name].parameters.properties


def filled(name: str, **given: Any) -> dict[str, Any]:
    """A form as it is when it opens, with some fields changed."""
    return (
        {field: about["default"] for field, about in fields_of(name).items()} | {"base": "builtin:tiny-llama"} | given
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_flat_titled_and_described_and_can_be_sent_as_it_opens(name: str) -> None:
    for field, about in fields_of(name).items():
        assert about["type"] in ("string", "integer", "number", "boolean", "array", "object"), field
        assert not {"anyOf", "oneOf", "allOf", "$ref"} & {*about, *about.get("items", {})}, field
        assert about["title"] != field and about["description"] and "default" in about, field
    assert FORMS[name].parameters.required == []


@pytest.mark.parametrize("uses", methods())
def test_settings_of_a_method_have_its_own_defaults_and_limits(uses: str) -> None:
    cls = stage_class(uses)
    for name in cls.shown:
        about, own = fields_of(uses)[name], cls.model_json_schema()["properties"][name]
        assert about["default"] == (own["default"] if own["default"] is not None else 0)
        assert about.get("exclusiveMinimum") == own.get("exclusiveMinimum")


def test_each_method_is_a_deployment_of_its_own() -> None:
    served = {each.name: each.entrypoint for each in deployments()}
    assert set(served) == {"align", "align-compare", "align-retrain", *(f"align-{uses}" for uses in methods())}
    assert served["align-dpo"] == "flows.deployments.methods.align_dpo"


def test_a_form_becomes_a_recipe_that_plans_and_that_the_command_line_can_run(home: Path) -> None:
    given = filled("dpo", beta=0.3, overrides={"sft.epochs": 2}, until="dpo", experiment="mine", seed=4)
    wanted = wanted_of("align-dpo", {"dpo": {"beta": 0.3}}, given)
    plan = plan_of(wanted, Store(home))
    assert [each.label for each in plan.stages] == ["base", "instructions", "pairs", "sft", "dpo"]
    assert (plan.recipe.name, plan.recipe.seed, plan["sft"].payload["fields"]["epochs"]) == ("mine", 4, 2.0)
    assert yaml.safe_load(wanted.recipe.read_text())["stages"]["dpo"]["beta"] == 0.3
    assert wanted.recipe.parent == home / "recipes"


def test_the_same_form_is_the_same_recipe_and_another_one_another(home: Path) -> None:
    one, same, other = (
        wanted_of("align-dpo", {"dpo": settings}, filled("dpo")) for settings in ({}, {}, {"beta": 0.5})
    )
    assert one.recipe == same.recipe != other.recipe


def test_an_earlier_run_gives_its_stages_with_files_where_that_found_them(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "rows.jsonl").write_text((ROOT / "pipelines/quickstart_data/instructions.jsonl").read_text())
    stages = {
        "base": {"uses": "base", "source": "builtin:tiny-llama"},
        "rows": {"uses": "data", "base": "base", "form": "demonstrations", "source": "rows.jsonl"},
        "sft": {"uses": "sft", "base": "base", "data": "rows"},
    }
    RunRecord(str(folder / "mine.yaml"), "mine-1", "59d25630", None, []).save(home)
    files = home / "runs" / "mine-1" / "files"
    files.mkdir(parents=True)
    (files / "recipe.json").write_text(json.dumps({"stages": stages}))
    plan = plan_of(wanted_of("align-dpo", {"dpo": {}}, filled("dpo", from_run="mine-1")), Store(home))
    assert plan["dpo"].needs[0] == "sft" and plan["sft"].needs == ("base", "rows")
    assert plan["rows"].stage.model_dump()["source"] == str(folder / "rows.jsonl")
    by_flow_run = wanted_of("align-dpo", {"dpo": {}}, filled("dpo", from_run="59d25630"))
    assert plan_of(by_flow_run, Store(home))["dpo"].key == plan["dpo"].key
    with pytest.raises(UserError, match="no run is named 'mine-2'"):
        wanted_of("align-dpo", {"dpo": {}}, filled("dpo", from_run="mine-2"))


@pytest.mark.parametrize("recipe", ["shipped", "mounted", "triggered"])
def test_an_earlier_run_of_another_machine_is_found_in_mlflow(
    recipe: str, home: Path, tmp_path: Path, shared_server: MlflowServer, monkeypatch
) -> None:
    """A pod's home is empty each time. What was triggered has whole paths, which lead behind a ConfigMap's links."""
    mount = tmp_path / "recipes"
    folder, behind = {"shipped": ("/other/clone/pipelines", "/other/clone/pipelines")}.get(
        recipe, (str(mount), str(mount / "..2026_11_27"))
    )
    source = "quickstart_data/instructions.jsonl"
    if recipe != "shipped":
        (mount / "quickstart_data").mkdir(parents=True)
        (mount / source).write_bytes((ROOT / "pipelines" / source).read_bytes())
    monkeypatch.setattr(MlflowServer, "reach", lambda home: shared_server)
    stages = {
        "base": {"uses": "base", "source": "builtin:tiny-llama"},
        "rows": {"uses": "data", "base": "base", "form": "demonstrations",
                 "source": f"{behind}/{source}" if recipe == "triggered" else source},
        "sft": {"uses": "sft", "base": "base", "data": "rows"},
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps({"stages": stages}))
    tags = {
        "align.run_id": "mine-1", "align.kind": "pipeline", "prefect.flow_run_id": "59d25630",
        "align.recipe_file": f"{folder}/quickstart.yaml", "align.recipe_folder": behind,
    }  # fmt: skip
    run = shared_server.make("recipe", "mine-1", tags)
    shared_server.client.log_artifact(run, str(tmp_path / "recipe.json"))
    keys = set()
    for named in ("mine-1", "59d25630"):
        plan = plan_of(wanted_of("align-dpo", {"dpo": {}}, filled("dpo", from_run=named)), Store(home))
        assert plan["dpo"].needs[0] == "sft" and plan["sft"].needs == ("base", "rows")
        keys.add(plan["dpo"].key)
    assert len(keys) == 1
    for unknown in ("mine-2", "mine-1' or '1'='1"):
        with pytest.raises(UserError, match="no run is named"):
            wanted_of("align-dpo", {"dpo": {}}, filled("dpo", from_run=unknown))


@pytest.mark.parametrize("rows", ['{"prompt": "one", "chosen": "a", "rejected": "b"}\n' * 200, "rows\0.jsonl"])
def test_what_no_file_can_be_called_is_refused_in_words(home: Path, rows: str) -> None:
    """Such as the rows themselves, pasted where their file's name belongs."""
    wanted = wanted_of("align-dpo", {"dpo": {}}, filled("dpo", pairs=rows))
    with pytest.raises(UserError, match=r"pairs\.source: nothing is at|pairs.*source"):
        plan_of(wanted, Store(home))


def test_a_form_whose_recipe_can_not_be_kept_is_refused_in_words(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "recipes").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="the form's recipe can't be written"):
        wanted_of("align-dpo", {"dpo": {}}, filled("dpo"))


def test_what_may_be_absent_is_0_in_a_form(home: Path) -> None:
    assert fields_of("ppo")["total_episodes"]["default"] == 0
    plan = plan_of(wanted_of("align-ppo", {"ppo": {}}, filled("ppo")), Store(home))
    assert "total_episodes" not in plan["ppo"].payload["fields"]


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_a_comparison_takes_each_method_with_each_seed(seeds: int, home: Path) -> None:
    given = filled("compare", seeds=seeds, seed=5)
    plan = plan_of(compared(given), Store(home))
    for uses in given["methods"]:
        assert sorted(each.seed for each in plan.stages if each.uses == uses) == list(range(5, 5 + seeds))


def test_a_comparison_of_more_trainings_than_its_form_allows_is_refused_in_the_forms_words(home: Path) -> None:
    assert fields_of("compare")["seeds"]["maximum"] == MOST_TRAININGS == 64
    assert f"methods times seeds are at most {MOST_TRAININGS}" in fields_of("compare")["seeds"]["description"]
    with pytest.raises(UserError, match=r"6 methods times 11 seeds = 66; ask for 10 seeds, or for fewer methods$"):
        compared(filled("compare", seeds=11, seed=5))


def test_a_field_is_what_prefect_shows_of_it() -> None:
    parameter = Shown("beta", float, 0.1, "Beta", "How much.").parameter()
    assert (parameter.default.default, parameter.default.json_schema_extra) == (0.1, {"title": "Beta"})
