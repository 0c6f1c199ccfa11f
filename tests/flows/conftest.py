"""A registry of each test's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from artifacts.store import Store
from flows.tracking.mlflow_server import MlflowServer
from tests.flows.made_runs import MadeRuns


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one of MLflow's, which takes longer to make than all else here."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowServer(folder)
    return folder / "mlflow.db"


@pytest.fixture
def train(store: Store, write_recipe: Callable[..., Path], tiny_llama: Any, database: Path) -> MadeRuns:
    store.home.mkdir()
    shutil.copy(database, store.home)
    return MadeRuns(store, write_recipe, tiny_llama.path)


@pytest.fixture
def registry(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def aliases(registry: MlflowClient, name: str = "recipe") -> dict[str, str]:
    return {alias: str(number) for alias, number in registry.get_registered_model(name).aliases.items()}
