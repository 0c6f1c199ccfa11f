"""A real MLflow database that stands for a server which other machines use too: what lies there is fetched from it."""

from __future__ import annotations

from pathlib import Path

from flows.tracking.mlflow_server import MlflowServer


def shared_server(folder: Path) -> MlflowServer:
    """With the experiment `recipe`, whose artifacts are beside it."""
    server = MlflowServer(folder / "theirs")
    server.experiment("recipe")
    server.is_own, server.name = False, "theirs"
    return server
