"""A Prefect server that is away for hours ends nothing: what Prefect itself would give up on goes on.

By itself, what runs flow runs ends for good after a minute without a server, what listens for Cancel and Pause too, a
worker after twenty, and a run with a limit on its deployment as soon as it can't say for five minutes that it is alive.
Each stage has its own lock, so that two retrainings for some minutes cost no more than time.
"""

from __future__ import annotations

import sys
from typing import Any

ERRORS = 10_000
"""One after another, at some seconds each: more than a day."""


def outlast_prefect() -> None:
    """From now on, in this process."""
    from prefect import flow_engine
    from prefect.utilities import services

    _replace(services, "critical_service_loop", consecutive=ERRORS)
    _replace(flow_engine, "maintain_concurrency_lease", raise_on_lease_renewal_failure=False)


def _replace(module: Any, name: str, **always: Any) -> None:
    """Have `module.name` called with these words, whatever the caller says, by those too who have imported it."""
    original = getattr(module, name)
    if getattr(original, "always", None) == always:
        return

    def patient(*given: Any, **words: Any) -> Any:
        return original(*given, **{**words, **always})

    patient.always = always  # type: ignore[attr-defined]  # by which a second call knows that it is done
    for each in list(sys.modules.values()):
        if getattr(each, "__dict__", {}).get(name) is original:
            setattr(each, name, patient)
