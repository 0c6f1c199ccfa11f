"""What MLflow is asked, and how it is named."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

from artifacts.errors import UserError
from flows.registry.versions import CHAMPION, only_champion
from flows.tracking.mlflow_server import MlflowServer, every


@pytest.fixture
def server(empty_mlflow: Path) -> MlflowServer:
    return MlflowServer(empty_mlflow)


def test_a_search_gives_every_page(server: MlflowServer) -> None:
    for name in "abc":
        server.client.create_registered_model(name)
    search = partial(server.client.search_registered_models, max_results=1)
    assert [model.name for model in every(search)] == ["a", "b", "c"]


def test_the_only_champion_is_found_behind_many_other_models(
    server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "z"):
        server.client.create_registered_model(name)
    server.client.create_model_version("z", "runs:/r/output", "r")
    server.client.set_registered_model_alias("z", CHAMPION, "1")
    one_a_page = partial(server.client.search_registered_models, max_results=1)
    monkeypatch.setattr(server.client, "search_registered_models", one_a_page)
    assert only_champion(server) == "z"


def test_a_server_that_refuses_is_named_without_the_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: MlflowServer) -> str:
        raise MlflowException("no", error_code=UNAUTHENTICATED)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-4f6c@mlflow:80")
    monkeypatch.setattr(MlflowServer, "_mark", refuses)
    with pytest.raises(UserError, match="MLflow at http://mlflow:80") as caught:
        MlflowServer.reach(home)
    assert "planted" not in str(caught.value)


def test_a_server_of_another_version_is_said_to_be_one(home: Path, old_mlflow: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{old_mlflow}")
    with pytest.raises(UserError, match=r"version may be why: wanted .*>=3.*, got 1\.30\.0; start one of such"):
        MlflowServer.reach(home, "tiny")
