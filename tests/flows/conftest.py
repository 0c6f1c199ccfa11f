"""MLflow's databases of each test's own: this home's, and one that stands for a server of several machines."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from artifacts.store import Store
from flows.tracking.mlflow_server import MlflowServer
from tests.flows.made_runs import MadeRuns
from tests.flows.old_servers import MLFLOW, PREFECT, old_server


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one of MLflow's, which takes longer to make than all else here."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowServer(folder)
    return folder / "mlflow.db"


@pytest.fixture
def empty_mlflow(store: Store, database: Path) -> Path:
    """This test's home with an empty database of MLflow's in it."""
    store.home.mkdir(exist_ok=True)
    shutil.copy(database, store.home)
    return store.home


@pytest.fixture
def shared_server(tmp_path: Path, database: Path) -> MlflowServer:
    """A real database that stands for a server which other machines use too: what lies there is fetched from it.

    With the experiment `recipe`, whose artifacts are beside it.
    """
    (tmp_path / "theirs").mkdir()
    shutil.copy(database, tmp_path / "theirs")
    server = MlflowServer(tmp_path / "theirs")
    server.experiment("recipe")
    server.is_own, server.name = False, "theirs"
    return server


@pytest.fixture
def train(store: Store, write_recipe: Callable[..., Path], tiny_llama: Any, empty_mlflow: Path) -> MadeRuns:
    return MadeRuns(store, write_recipe, tiny_llama.path)


@pytest.fixture
def registry(empty_mlflow: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{empty_mlflow / 'mlflow.db'}")


def aliases(registry: MlflowClient, name: str = "recipe") -> dict[str, str]:
    return {alias: str(number) for alias, number in registry.get_registered_model(name).aliases.items()}


@pytest.fixture
def old_prefect() -> Iterator[int]:
    """The port of a Prefect server of another version."""
    with old_server(PREFECT) as port:
        yield port


@pytest.fixture
def old_mlflow() -> Iterator[int]:
    """The port of an MLflow server of another version."""
    with old_server(MLFLOW) as port:
        yield port
