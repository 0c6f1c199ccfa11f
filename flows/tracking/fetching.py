"""Models that a recipe names by where MLflow has them, fetched to where a plan can read them.

    models:/NAME/3   models:/NAME@ALIAS   models:/ID   runs:/RUN/PATH

An alias is looked up once, now; the files of a version never change, so each is fetched once, to `$ALIGN_HOME/fetched`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import ModelError
from artifacts.locking import held
from flows.addresses import reason
from flows.home import aside
from pipelines.allowed import FETCHED
from pipelines.recipe import Recipe
from tasks.registry import stage_class

if TYPE_CHECKING:
    from flows.tracking.mlflow_server import MlflowServer

SCHEMES = ("models:/", "runs:/")


def fetched(recipe: Recipe, home: Path) -> Recipe:
    """`recipe` with folders in place of such names; raises ModelError if one can't be had."""
    stages = dict(recipe.stages)
    for label, fields in recipe.stages.items():
        for name, what in stage_class(fields["uses"]).outside.items():
            source = fields.get(name)
            if what == "model" and isinstance(source, str) and source.startswith(SCHEMES):
                found = _fetch(f"{recipe.path}: {label}.{name}", source, home)
                stages[label] = {**stages[label], name: str(found)}
    return recipe.model_copy(update={"stages": stages})


def _fetch(where: str, uri: str, home: Path) -> Path:
    """The folder of the model at `uri`."""
    from flows.tracking.mlflow_server import MlflowServer

    server = MlflowServer(home)
    try:
        name, place = _resolved(uri, server)
        folder = home / FETCHED / name
        with held(home / "locks" / "fetched", wait=True):
            if not folder.exists():
                _download(uri, place, folder, server)
    except Exception as error:  # an artifact store raises what it likes, and says by itself what is wrong
        raise ModelError(f"{where}: {uri} can't be had from MLflow at {server.shown}: {reason(error)}") from error
    found = [path.parent for name in ("adapter_config.json", "config.json") for path in sorted(folder.rglob(name))]
    if not found:
        raise ModelError(f"{where}: {uri} holds neither an adapter nor a model (adapter_config.json or config.json)")
    return found[0]


def _download(uri: str, place: str, folder: Path, server: MlflowServer) -> None:
    """Raises whatever MLflow, the artifact store or the disk does, and leaves nothing then."""
    from mlflow.artifacts import download_artifacts

    print(f"fetching {uri} from {server.shown}", file=sys.stderr)
    with aside(server.home) as part:
        download_artifacts(artifact_uri=place, dst_path=str(part), tracking_uri=server.uri)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.rename(folder)


def _resolved(uri: str, server: MlflowServer) -> tuple[str, str]:
    """A name that will always mean the same files, and where they are; raises MlflowException or ModelError."""
    scheme, _, rest = uri.partition(":/")
    if ".." in rest.split("/"):
        raise ModelError("wanted a path within the run's artifacts")
    if scheme == "runs":
        run, _, path = rest.strip("/").partition("/")
        if (status := server.client.get_run(run).info.status) != "FINISHED":
            raise ModelError(f"the run is {status}; wanted one that is finished, whose files stay as they are")
        return f"runs/{run}/{path}", uri
    if "@" in rest:
        name, _, alias = rest.partition("@")
        version = str(server.client.get_model_version_by_alias(name, alias).version)
    elif "/" in rest:
        name, _, version = rest.partition("/")
    else:
        return f"models/{rest}", str(server.client.get_logged_model(rest).artifact_location)
    return f"models/{name}/{version}", server.client.get_model_version_download_uri(name, version)
