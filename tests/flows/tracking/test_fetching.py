"""Models named by where MLflow has them: pinned, fetched once, and refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import ModelError
from flows.commands.planning import Wanted, plan_of
from flows.tracking.mlflow_server import MlflowServer


@pytest.fixture
def server(empty_mlflow: Path) -> MlflowServer:
    return MlflowServer.reach(empty_mlflow, "theirs")


@pytest.fixture
def run(server: MlflowServer, tiny_llama: Any, tmp_path: Path) -> str:
    """A finished run with peft's own adapter, and a file that is no model, among its artifacts."""
    return publish(server, tiny_llama, tmp_path / "first", rank=2)


def publish(server: MlflowServer, base: Any, folder: Path, rank: int) -> str:
    from peft import LoraConfig, get_peft_model

    from tasks.training.models import load_model

    config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(base, "cpu"), config).save_pretrained(folder)
    run = server.make("theirs", "sft", {})
    server.client.log_artifacts(run, str(folder), "model/peft")
    server.client.log_text(run, "nothing", "notes/readme.txt")
    server.client.set_terminated(run)
    return run


@pytest.fixture
def key_of(write_recipe: Any, store: Any) -> Any:
    def plan(source: str) -> str:
        recipe = {"stages": {
            "base": {"uses": "base", "source": "builtin:tiny-llama"},
            "theirs": {"uses": "adopt", "base": "base", "source": source},
        }}  # fmt: skip
        return plan_of(Wanted(write_recipe(recipe)), store)["theirs"].key

    return plan


def test_every_name_of_the_same_files_is_the_same_key(server, run, key_of, tmp_path):
    server.client.create_registered_model("mine")
    server.client.create_model_version("mine", f"runs:/{run}/model", run)
    server.client.set_registered_model_alias("mine", "good", "1")
    names = [f"runs:/{run}/model", f"runs:/{run}/model/peft", "models:/mine/1", "models:/mine@good"]
    assert {key_of(name) for name in names} == {key_of(str(tmp_path / "first"))}


def test_a_base_may_be_there_too_under_every_name(server, tiny_llama, write_recipe, store):
    run = server.make("theirs", "pretraining", {})
    server.client.log_artifacts(run, str(tiny_llama.path), "output")
    server.client.set_terminated(run)
    server.client.create_registered_model("small")
    server.client.create_model_version("small", f"runs:/{run}/output", run)
    server.client.set_registered_model_alias("small", "good", "1")
    names = [str(tiny_llama.path), f"runs:/{run}/output", "models:/small/1", "models:/small@good"]
    keys = set()
    for name in names:
        recipe = write_recipe({"stages": {"base": {"uses": "base", "source": name}}})
        plan = plan_of(Wanted(recipe), store)
        keys.add(plan["base"].key)
    assert len(keys) == 1
    assert Path(plan["base"].stage.source).is_relative_to(store.home / "fetched")


def test_an_alias_that_moves_is_looked_up_again_and_its_version_is_fetched_once(
    server, run, key_of, tiny_llama, tmp_path, capsys
):
    other = publish(server, tiny_llama, tmp_path / "second", rank=4)
    server.client.create_registered_model("mine")
    for each in (run, other):
        server.client.create_model_version("mine", f"runs:/{each}/model", each)
    keys = []
    for version in ("1", "2", "1"):
        server.client.set_registered_model_alias("mine", "good", version)
        keys.append(key_of("models:/mine@good"))
    assert keys[0] == keys[2] != keys[1]
    assert capsys.readouterr().err.count("fetching") == 2


def test_a_whole_model_is_a_base_or_adopted_by_where_mlflow_has_it(server, tiny_llama, write_recipe, store):
    run = server.make("theirs", "merge", {})
    server.client.log_artifacts(run, str(tiny_llama.path), "model")
    server.client.set_terminated(run)

    def keys(source: str) -> list[str]:
        recipe = {"stages": {
            "base": {"uses": "base", "source": source},
            "theirs": {"uses": "adopt", "base": "base", "source": source, "complete": True},
        }}  # fmt: skip
        plan = plan_of(Wanted(write_recipe(recipe)), store)
        return [planned.key for planned in plan.stages]

    assert keys(f"runs:/{run}/model") == keys(str(tiny_llama.path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/mine/7", "models:/mine/7 can't be had from MLflow at sqlite:.*mine"),
        ("models:/mine@best", "models:/mine@best can't be had"),
        ("models:/m-0123", "models:/m-0123 can't be had"),
        ("runs:/0123/model", "runs:/0123/model can't be had .*0123"),
        ("runs:/RUN/nowhere", "can't be had|holds neither"),
        ("runs:/RUN/../../../escaped", "wanted a path within the run's artifacts"),
        ("runs:/RUN/notes", "holds neither an adapter nor a model"),
    ],
)
def test_what_is_not_there_is_refused_with_where_it_was_looked_for(server, run, key_of, source, message):
    with pytest.raises(ModelError, match=f"recipe.yaml: theirs.source: .*{message}"):
        key_of(source.replace("RUN", run))


def test_a_run_that_goes_on_is_no_source(server, run, key_of):
    server.client.update_run(run, status="RUNNING")
    with pytest.raises(ModelError, match="the run is RUNNING; wanted one that is finished"):
        key_of(f"runs:/{run}/model")


def test_a_fetch_that_is_cut_off_leaves_nothing_and_is_done_again(server, run, key_of, home, monkeypatch):
    def cut_off(dst_path: str, **more: Any) -> None:
        (Path(dst_path) / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        raise OSError("the connection was reset")

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.artifacts.download_artifacts", cut_off)
        with pytest.raises(ModelError, match=r"can't be had from MLflow at sqlite:.*the connection was reset"):
            key_of(f"runs:/{run}/model")
    assert not any((home / "fetching").iterdir()) and not (home / "fetched").exists()
    assert key_of(f"runs:/{run}/model")


def test_whatever_an_artifact_store_raises_is_said(server, run, key_of, monkeypatch):
    def fails(**asked):
        raise ModuleNotFoundError("No module named 'boto3'")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fails)
    with pytest.raises(ModelError, match=f"runs:/{run}/model can't be had from MLflow at .*: No module named 'boto3'"):
        key_of(f"runs:/{run}/model")
