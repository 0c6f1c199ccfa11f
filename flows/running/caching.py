"""Prefect's cache under our keys, and subordinate to our store.

Prefect's record of a finished task is a small pointer that knows nothing of weights: it would say `Cached` with the
files gone. So before Prefect looks, a record whose output the store can't vouch for is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.settings import get_current_settings

from artifacts.store import Store
from pipelines.plan import Planned


@dataclass
class StageKey(CachePolicy):
    """Returns the planned stage's own key."""

    planned: Planned | None = None
    store: Store | None = None

    def compute_key(
        self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        assert self.planned is not None and self.store is not None
        name = f"{self.planned.uses}-{self.planned.key}"
        if self.store.get(self.planned.uses, self.planned.key) is None:
            (results_folder() / name).unlink(missing_ok=True)
        return name


def results_folder() -> Path:
    """Where Prefect keeps result records on this machine."""
    return Path(str(get_current_settings().results.local_storage_path))
