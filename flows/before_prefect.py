"""Imported first by every module with a flow: what Prefect and MLflow read when they are imported is ready then."""

from __future__ import annotations

from contextlib import suppress

from flows.home import align_home, prepare_services

prepare_services(align_home())
with suppress(OSError):  # whoever may not write there is told so later, and better
    align_home().mkdir(parents=True, exist_ok=True)  # Prefect's own server has its database there
