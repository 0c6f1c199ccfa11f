"""Every environment variable that something which we start reads, taken from what reads it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import asyncpg.connect_utils
import mlflow.environment_variables
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.credentials import EnvProvider
from prefect.settings import Settings
from prefect_kubernetes.settings import KubernetesSettings

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("artifacts", "tasks", "pipelines", "flows")
IMAGES = {  # of images that aren't ours, from their own pages
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},
    "versity/versitygw": {"ROOT_ACCESS_KEY_ID", "ROOT_SECRET_ACCESS_KEY", "VGW_PORT", "VGW_HEALTH"},
}


def unknown(names: Iterable[str], image: str = "alignflow") -> set[str]:
    """Of these variables, those that nothing in a container of this image reads."""
    return set(names) - IMAGES.get(image, _OURS)


def _ours() -> set[str]:
    code = "\n".join(path.read_text() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
    return {
        *re.findall(r"\bALIGN_[A-Z_]+\b", code),
        *_settings(Settings, "PREFECT"),
        *_settings(KubernetesSettings, "PREFECT_INTEGRATIONS_KUBERNETES"),
        *(found.name for found in vars(mlflow.environment_variables).values() if hasattr(found, "name")),
        *re.findall(r"\bPG[A-Z]+\b", inspect.getsource(asyncpg.connect_utils)),
        *(env for _, env, *_ in BOTOCORE_DEFAUT_SESSION_VARIABLES.values() if isinstance(env, str)),
        EnvProvider.ACCESS_KEY, EnvProvider.SECRET_KEY,
        "ALIGN_IMAGE", "ALIGN_RUNS_AT_ONCE", "ALIGN_FORMS_POOL", "ALIGN_ARTIFACTS",  # of deploy/kubernetes itself
    }  # fmt: skip


def _settings(model: Any, prefix: str) -> set[str]:
    """Prefect's settings, which are models within models, under all their names."""
    found = set()
    for name, field in model.model_fields.items():
        here = f"{prefix}_{name.upper()}"
        choices = getattr(field.validation_alias, "choices", [])
        found |= {choice.upper() for choice in choices if isinstance(choice, str) and choice.startswith("prefect_")}
        found |= _settings(field.annotation, here) if hasattr(field.annotation, "model_fields") else {here}
    return found


_OURS = _ours()
