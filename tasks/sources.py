"""Where data and base models come from: a file or folder, an installed package, or a hub id pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from artifacts.errors import AlignError, DataError, ModelError, UserError, ran_out_of_memory

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*(@[A-Za-z0-9][\w./-]*)?")
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
    looked_at = places(source, folders)
    if (found := first_there(looked_at)) is not None:
        return str(found.resolve())
    if is_hub_id(source):
        return f"hub:{_pinned(source, repo, wrong)}"
    looked = " nor at ".join(dict.fromkeys(str(place) for place in looked_at))
    raise wrong(f"source: nothing is at {looked}; give a path from the recipe's folder or from here")


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file may be `org/name` or `org/name@revision` on the hub."""
    return bool(HUB_ID.fullmatch(source)) and ".." not in source and not source.lower().endswith(FILE_SUFFIXES)


def places(source: str, folders: Sequence[Path]) -> list[Path]:
    """Where a path is looked for, in this order."""
    path = Path(source)
    with suppress(RuntimeError):  # `~somebody`, whom nobody knows here
        path = path.expanduser()
    return [path] if path.is_absolute() else [folder / path for folder in folders]


def first_there(paths: Sequence[Path]) -> Path | None:
    """The first of them that exists; names that no file can have don't."""
    for path in paths:
        with suppress(OSError, ValueError):  # too long, or with a byte 0 in it
            if path.exists():
                return path
    return None


def _pinned(name: str, repo: str, wrong: type[UserError]) -> str:
    """`org/name@commit` for a hub id, so that a moving branch can't change what a key stands for."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    identity, _, revision = name.partition("@")
    try:
        info = HfApi().repo_info(identity, revision=revision or None, repo_type=repo, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise wrong(f"source: {_refused(name, repo, error.response.status_code)}") from error
    except Exception as error:
        raise wrong(
            f"source: {name!r} is no file here, and the hub can't be reached to look it up "
            f"({error.__class__.__name__}); download it and give its folder instead"
        ) from error
    return f"{identity}@{info.sha}"


def _refused(name: str, repo: str, status: int) -> str:
    """What the hub's answer means; whether a name is unknown or not for you it does not tell everyone."""
    if status >= 500:
        return f"the hub does not answer (status {status}) about the {repo} {name!r}; try again later"
    from huggingface_hub import get_token

    do = (
        "see that the token in HF_TOKEN is valid and may read it"
        if get_token()
        else "if it is not for all set HF_TOKEN"
    )
    return f"the hub has no {repo} {name!r} that you may read (status {status}); {do}"


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
