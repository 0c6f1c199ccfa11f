"""What a run may read, run and reach that someone started from elsewhere: through a form, a schedule, an API.

Whoever types `align run` has the machine's rights anyway. Whoever fills in a form has those that its worker's
environment gives, and these are all of them:

    ALIGN_DATA_ROOTS    folders in which recipes, data, models and rewards are, divided by `:`; without it pipelines/
    ALIGN_ALLOW         `programs`: rewards may be Python functions in files there
    ALIGN_JUDGE_HOSTS   hosts, as HOST or HOST:PORT, at which judges may be asked, divided by commas; without it none
    ALIGN_JUDGE_KEYS    environment variables with keys for these, divided by commas; without it OPENAI_API_KEY

Beside files there are models that have no path: installed packages, those made in code, those that a hub or MLflow has.
What of these has been fetched is a model, wherever it was put, and never a program, though it be in a root.
Nothing outside is looked at before it is refused, so that what a refusal says does not tell what is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never
from urllib.parse import urlsplit

from artifacts.errors import RecipeError, UserError
from pipelines.problems import Problems, did_you_mean
from pipelines.recipe import Recipe
from pipelines.wiring import check_stages
from tasks.registry import stage_class
from tasks.rl.programs import CHECKS, file_of
from tasks.sources import HUB_ID, first_there, is_hub_id, places
from tasks.stage import Outside

ROOTS, ALLOW, HOSTS, KEYS = "ALIGN_DATA_ROOTS", "ALIGN_ALLOW", "ALIGN_JUDGE_HOSTS", "ALIGN_JUDGE_KEYS"
PROGRAMS = "programs"
SHIPPED = Path(__file__).resolve().parent
"""The recipes that come with us, and their data."""
FETCHED = "fetched"
"""Where in a home models are that were fetched by their names."""
CACHES = (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE",
    "HUGGINGFACE_ASSETS_CACHE", "HF_XET_CACHE", "HF_DATASETS_DOWNLOADED_DATASETS_PATH",
    "HF_DATASETS_EXTRACTED_DATASETS_PATH",
)  # fmt: skip
"""Variables that move a folder of the hub's downloads."""
NO_PATHS = {
    "data": (f"hub:{HUB_ID.pattern}",),
    "model": (
        f"hub:{HUB_ID.pattern}", r"package:[A-Za-z0-9][\w.-]*", r"builtin:[\w-]+", r"models:/[^/:@'\"]+(/\d+|@[\w-]+)?",
        r"runs:/[0-9a-f]{32}/[\w.-]+(/[\w.-]+)*",
    ),
}  # fmt: skip
"""Names by which a field may find what is in no file."""


@dataclass(frozen=True)
class Allowed:
    """What such a run may do."""

    roots: tuple[Path, ...] = (SHIPPED,)
    """As they were named, and where they really are."""
    programs: bool = False
    hosts: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset({"OPENAI_API_KEY"})
    models: tuple[Path, ...] = ()
    """Folders of models that were fetched by their names."""
    downloads: tuple[Path, ...] = ()
    """Folders whose files others than the machine's users have written."""

    @classmethod
    def read(cls, environment: Mapping[str, str], home: Path | None = None) -> Allowed:
        """What the environment says; raises UserError for a word that allows nothing; `home` is `$ALIGN_HOME`."""
        words = _words(environment.get(ALLOW, ""))
        if strange := next((word for word in words if word != PROGRAMS), None):
            raise UserError(
                f"{ALLOW}: wanted {PROGRAMS} or nothing, got {strange!r}{did_you_mean(strange, [PROGRAMS])}"
            )
        keys = _words(environment.get(KEYS, "OPENAI_API_KEY"))
        hosts = (host.lower().replace("[", "").replace("]", "") for host in _words(environment.get(HOSTS, "")))
        return cls(
            roots_of(environment), PROGRAMS in words, frozenset(hosts), frozenset(keys),
            models=_named_and_real(home / FETCHED) if home else (), downloads=_downloads(environment, home),
        )  # fmt: skip

    def require(self, recipe: Path) -> None:
        """Raise RecipeError for a recipe that is not to be read."""
        if not self._within(str(recipe), [Path.cwd()]):
            raise RecipeError(f"recipe: {self._wanted(str(recipe))}")

    def restricted(self, recipe: Recipe) -> Recipe:
        """`recipe` with every source either a path within the roots or a name that is no path.

        Raises RecipeError for all that may not be.
        """
        problems, stages = Problems(str(recipe.path)), dict(recipe.stages)
        for label, stage in check_stages(recipe.stages, problems)[1].items():
            fields = stage_class(recipe.stages[label]["uses"]).spelled_out(recipe.stages[label])
            given = {name: value for name in stage.outside if (value := getattr(stage, name)) is not None}
            asks = any(stage.outside[name] == "endpoint" for name in given)
            for name, value in given.items():
                if (what := stage.outside[name]) != "variable" or asks:
                    fields |= self._field(f"{label}.{name}", what, name, value, recipe.folders, problems)
            stages[label] = fields
        problems.raise_if_any()
        return recipe.model_copy(update={"stages": stages})

    def _field(
        self, place: str, what: Outside, name: str, value: Any, folders: Sequence[Path], problems: Problems
    ) -> dict[str, Any]:
        """The field as it is to stand there, if otherwise than it does; adds what may not be to the problems."""
        try:
            match what:
                case "data" | "model":
                    return {name: self._source(what, value, folders)}
                case "programs":
                    return {name: dict(self._programs(value, folders))} if value else {}
                case "endpoint":
                    self._require_host(value)
                case "variable":
                    if value not in self.keys:
                        raise RecipeError(_refusal(", ".join(sorted(self.keys)) or "no key", value, KEYS))
                case "nothing":
                    pass
                case _:
                    assert_never(what)
        except RecipeError as error:
            problems.add(place, str(error))
        return {}

    def _source(self, what: str, source: str, folders: Sequence[Path]) -> str:
        if source.isprintable() and ".." not in source and any(re.fullmatch(form, source) for form in NO_PATHS[what]):
            return source
        good = self._within(source, folders) or self._fetched(what, source)
        if not good:
            raise RecipeError(self._wanted(source))
        if (found := first_there(good)) is not None:
            return str(found)
        return f"hub:{source}" if is_hub_id(source) else str(good[0])

    def _programs(self, programs: Mapping[str, float], folders: Sequence[Path]) -> Iterator[tuple[str, float]]:
        """Each function by its file within the roots: what is installed is no reward."""
        for program, weight in programs.items():
            if program == CHECKS:
                yield program, weight
                continue
            if not self.programs:
                raise RecipeError(
                    _refusal(f"{CHECKS} or a reward model, and no function", program, f"{ALLOW}=programs")
                )
            module, _, function = program.rpartition(":")
            if not (good := self._within(file_of(module), folders)):
                raise RecipeError(self._wanted(program))
            ends = [end for place in good for end in _named_and_real(place.absolute())]
            if within := [folder for folder in self.downloads if any(end.is_relative_to(folder) for end in ends)]:
                raise RecipeError(
                    f"wanted a function in a file that was put there by hand, got {program!r:.200}; what is in "
                    f"{within[0]} was downloaded or made by runs"
                )
            yield f"{first_there(good) or good[0]}:{function}", weight

    def _require_host(self, url: str) -> None:
        parts = urlsplit(url)
        host = str(parts.hostname)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        if not re.fullmatch("[!-~]+", url) or not self.hosts & {host, f"{host}:{port}"}:
            raise RecipeError(_refusal(", ".join(sorted(self.hosts)) or "no endpoint", f"{host}:{port}", HOSTS))

    def _wanted(self, got: str) -> str:
        return _refusal("something in " + " or ".join(map(str, self.roots)), got, ROOTS)

    def _within(self, path: str, folders: Sequence[Path]) -> list[Path]:
        """Of the places where a path is looked for, those within the roots; none for another user's home."""
        if path.startswith("~") or not path.isprintable():
            return []
        return [place for place in places(path, folders) if leads_into(place, self.roots)]

    def _fetched(self, what: str, path: str) -> list[Path]:
        """A model by where it was fetched to, as the recipes have it that are made of others."""
        place = Path(path)
        there = what == "model" and place.is_absolute() and path.isprintable() and leads_into(place, self.models)
        return [place] if there else []


def leads_into(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path leads into a root, by its words and in truth, past nothing but roots and what is above them.

    A path that went past other folders, and back with `..`, would tell whether these exist.
    """
    passed = Path(path.root)
    for part in path.absolute().parts[1:]:
        passed = passed.parent if part == ".." else passed / part
        if not any(passed.is_relative_to(root) or root.is_relative_to(passed) for root in roots):
            return False
    try:
        ends = passed, path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    return all(any(end.is_relative_to(root) for root in roots) for end in ends)


def roots_of(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The folders that the environment names, each as it is named and where it really is."""
    named = [Path(one).expanduser().absolute() for one in environment.get(ROOTS, "").split(os.pathsep) if one]
    return tuple(dict.fromkeys(root for one in named or [SHIPPED] for root in _named_and_real(one)))


def _downloads(environment: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where the hub's libraries, MLflow's client and the runs themselves put files."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    hub = _expanded(environment.get("HF_HOME") or f"{cache}/huggingface")
    moved = [_expanded(environment[name]) for name in CACHES if environment.get(name)]
    own = (
        [home / name for name in (FETCHED, "fetching", "store", "drafts", "mlflow", "damaged", "trash")] if home else []
    )
    folders = [*(hub / name for name in ("hub", "datasets", "modules", "assets", "xet")), *moved, *own]
    return tuple(place for folder in folders for place in _named_and_real(folder))


def _expanded(folder: str) -> Path:
    """As the hub's libraries read it."""
    return Path(os.path.expandvars(folder)).expanduser().absolute()


def _named_and_real(folder: Path) -> tuple[Path, Path]:
    return Path(os.path.normpath(folder)), folder.resolve()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _refusal(wanted: str, got: str, variable: str) -> str:
    return (
        f"wanted {wanted}, got {got!r:.200}; a run that was not started with `align run` may do no more; {variable} in "
        "the environment of `align up`, or of the worker, allows it"
    )
