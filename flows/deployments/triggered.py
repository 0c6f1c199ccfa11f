"""Whether a run was started from elsewhere, and what it may do then."""

from __future__ import annotations

import os
import sys

from flows.home import align_home
from pipelines.allowed import Allowed


def allowed_here() -> Allowed | None:
    """What this flow run may do if a deployment started it, or a run above it; None if the machine's user did."""
    if "prefect" not in sys.modules:  # no flow has begun, and importing it takes seconds
        return None
    from prefect.runtime import deployment

    return Allowed.read(os.environ, align_home()) if deployment.id is not None else None
