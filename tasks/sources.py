"""Where data and base models come from: a file or folder, an installed package, or a hub id pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from artifacts.errors import AlignError, DataError, ModelError, UserError, ran_out_of_memory

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
HUB_TIMEOUT_S = 10
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".gguf", ".safetensors", ".bin", ".txt", ".yaml", ".zip", ".gz")
"""What ends like this was meant as a file. (`Qwen/Qwen2.5-0.5B` has a dot, and is none.)"""


def locate(source: str, folders: Sequence[Path], *, repo: Literal["model", "dataset"]) -> str:
    """`source` as an absolute path, or as `hub:org/name@commit`.

    Raises DataError or ModelError if it is neither there nor reachable on the hub.
    """
    wrong: type[UserError] = ModelError if repo == "model" else DataError
    if source.startswith("hub:"):
        return f"hub:{_pinned(source.removeprefix('hub:'), repo, wrong)}"
    path = Path(source).expanduser()
    places = [path] if path.is_absolute() else [folder / path for folder in folders]
    for place in places:
        if place.exists():
            return str(place.resolve())
    if HUB_ID.fullmatch(source) and not source.lower().endswith(FILE_SUFFIXES):
        return f"hub:{_pinned(source, repo, wrong)}"
    looked = " nor at ".join(dict.fromkeys(str(place) for place in places))
    raise wrong(f"source: nothing is at {looked}; give a path from the recipe's folder or from here")


def _pinned(name: str, repo: str, wrong: type[UserError]) -> str:
    """`org/name@commit` for a hub id, so that a moving branch can't change what a key stands for."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    identity, _, revision = name.partition("@")
    try:
        info = HfApi().repo_info(identity, revision=revision or None, repo_type=repo, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise wrong(f"source: the hub has no {repo} {name!r} that you may read ({error.__class__.__name__})") from error
    except Exception as error:
        raise wrong(
            f"source: {name!r} is no file here, and the hub can't be reached to look it up "
            f"({error.__class__.__name__}); download it and give its folder instead"
        ) from error
    return f"{identity}@{info.sha}"


@contextmanager
def understood(path: str | Path, as_what: str) -> Iterator[None]:
    """A ModelError for files that can't be made sense of: each library that reads a part has errors of its own."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0][:300]
        raise ModelError(f"source: {path} can't be loaded as {as_what}: {type(error).__name__}: {first}") from error


def split_hub(source: str) -> tuple[str, str]:
    """`hub:org/name@commit` as (`org/name`, `commit`)."""
    identity, _, commit = source.removeprefix("hub:").partition("@")
    return identity, commit
