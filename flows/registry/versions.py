"""A registered model in MLflow: its versions, and the aliases by which recipes and people take them.

`champion` is in use, `candidate` may be one day, `previous` was the champion before; a version is one model's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from artifacts.errors import UserError
from flows.tracking.mlflow_server import DIGEST_TAG, MlflowServer, every

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
NOT_IN_NAMES = "/:'\""

ABOUT = """\
Aligned models; aliases say which is which:

- `champion` is the one in use; `align promote STAGE --as champion` moves it, through a gate if one is given (`--must`)
- `previous` was the champion before; `align rollback --name {name}` swaps the two
- `candidate` waits
- a version without an alias was measured against the champion by `align-retrain` and lost

A recipe takes one as its base, or in `adopt`, with `source: models:/{name}@champion`.

Each version says what made it and how it was measured.
"""


class Versions:
    """The versions of the model with this name, which need not exist yet. Raises MlflowException."""

    def __init__(self, server: MlflowServer, name: str) -> None:
        if not name or set(name) & set(NOT_IN_NAMES):
            raise UserError(f"--name: wanted a name without any of {' '.join(NOT_IN_NAMES)}, got {name!r}")
        self.server, self.client, self.name = server, server.client, name

    @property
    def aliases(self) -> Mapping[str, str]:
        """The number of the version that each alias is on."""
        try:
            found = self.client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: str(number) for alias, number in found.items()}  # a database gives whole numbers

    def at(self, alias: str) -> ModelVersion | None:
        """The version that an alias is on."""
        number = self.aliases.get(alias)
        return None if number is None else self.client.get_model_version(self.name, number)

    def all(self) -> Sequence[ModelVersion]:
        """Every version."""
        return list(self.client.search_model_versions(f"name = '{self.name}'"))

    def with_digest(self, digest: str) -> ModelVersion | None:
        """The version that is these bytes."""
        return next((version for version in self.all() if version.tags.get(DIGEST_TAG) == digest), None)

    def make(self, run: str, tags: Mapping[str, str], description: str) -> str:
        """A new version, of the output in a stage's run; gives its number."""
        try:
            self.client.create_registered_model(self.name, description=ABOUT.format(name=self.name.replace("`", "")))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            self.name, f"runs:/{run}/output", run, tags=dict(tags), description=description
        )
        return str(version.version)

    def rewrite(self, number: str, tags: Mapping[str, str], description: str) -> None:
        """Let a version that is there say something newer."""
        for name, value in tags.items():
            self.tag(number, name, value)
        self.client.update_model_version(self.name, number, description)

    def tag(self, number: str, name: str, value: str) -> None:
        """Let a version carry this."""
        self.client.set_model_version_tag(self.name, number, name, value)

    def move(self, alias: str, number: str) -> None:
        """Put an alias on a version; a champion that makes way stays as `previous`."""
        champion = self.aliases.get(CHAMPION)
        if alias == CHAMPION and champion not in (None, number):
            self.client.set_registered_model_alias(self.name, PREVIOUS, champion)
        self.client.set_registered_model_alias(self.name, alias, number)

    def roll_back(self) -> tuple[str, str]:
        """Swap `champion` and `previous`; gives their numbers after that. Raises UserError if there are not both."""
        aliases = self.aliases
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None:
            raise UserError(f"{self.name} has no champion; `align promote STAGE --as champion` makes one")
        if previous is None or previous == champion:
            raise UserError(f"{self.name}: nothing to roll back to: no champion came before version {champion}")
        self.client.set_registered_model_alias(self.name, CHAMPION, previous)
        self.client.set_registered_model_alias(self.name, PREVIOUS, champion)
        return previous, champion


def only_champion(server: MlflowServer) -> str:
    """The one registered model that has a champion; raises UserError if there is none, or several."""
    names = [one.name for one in every(server.client.search_registered_models) if CHAMPION in one.aliases]
    if not names:
        raise UserError(f"no model in MLflow at {server.shown} has a champion; `align promote STAGE --as champion`")
    if len(names) > 1:
        raise UserError(f"--name: wanted one of {', '.join(sorted(names))}, which all have a champion")
    return str(names[0])
