"""Which code of ours a deployment was made with, and whether it is the one that a flow run has.

`deploy/prefect.yaml` names `this_code`, for where the deployment is made, and `use_this_code`, for where a run begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from artifacts.errors import UserError
from artifacts.fingerprint import digest, file_digest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("artifacts", "tasks", "pipelines", "flows")
NAME = "alignflow"
OTHER_CODE = "ALIGN_OTHER_CODE"
REFUSE, WARN = "refuse", "warn"


def code_version() -> str:
    """The package's version and a digest of all our modules: the same for the same code, in a clone or an image."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    files = {path.relative_to(ROOT).as_posix(): file_digest(path) for path in paths}
    return f"{NAME} {metadata.version(NAME)}+{digest(files)[:12]}"


def this_code() -> dict[str, str]:
    """A step of `prefect deploy`, whose answer becomes the deployment's version."""
    return {"code_version": code_version()}


def use_this_code() -> dict[str, str]:
    """A step before each flow run: recipes are looked up where the code is that runs."""
    return {"directory": str(ROOT)}


def check_code(made_by: str | None, say: Callable[[str], object]) -> None:
    """Raise UserError if a deployment was made by other code of ours than this; with ALIGN_OTHER_CODE=warn, say so.

    What has another version, or none, was not made with deploy/prefect.yaml.
    """
    wanted = os.environ.get(OTHER_CODE) or REFUSE
    if wanted not in (REFUSE, WARN):
        raise UserError(f"{OTHER_CODE}: wanted {REFUSE} or {WARN}, got {wanted!r}")
    if made_by is None or not made_by.startswith(f"{NAME} ") or made_by == (here := code_version()):
        return
    found = f"the deployment was made by {made_by}, this worker has {here}"
    if wanted == WARN:
        say(f"warning: {found}")
        return
    raise UserError(
        f"{found}; deploy again with the worker's code (prefect --no-prompt deploy --prefect-file deploy/prefect.yaml "
        f"--all), bring the worker's code up to date, or let it run all the same: {OTHER_CODE}={WARN} on the worker"
    )
