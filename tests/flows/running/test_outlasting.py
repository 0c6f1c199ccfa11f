"""What Prefect would end when its server is away for some minutes. The names are Prefect's own, and may change."""

from __future__ import annotations

import inspect
from functools import partial

import anyio
import httpx
import pytest
from prefect import flow_engine
from prefect._internal import observers
from prefect.runner import _scheduled_run_poller as poller
from prefect.utilities import services
from prefect.workers import base

from flows.running.outlasting import ERRORS, outlast_prefect


@pytest.fixture(autouse=True)
def patient() -> None:
    outlast_prefect()
    outlast_prefect()  # once is enough


@pytest.mark.parametrize("module", [services, poller, observers, base], ids=lambda module: module.__name__)
def test_what_asks_prefect_again_and_again_goes_on_for_more_than_a_day(module) -> None:
    assert module.critical_service_loop.always == {"consecutive": ERRORS}
    assert module.critical_service_loop is services.critical_service_loop
    assert 10 * ERRORS > 24 * 3600


def test_a_lease_that_cant_be_renewed_ends_no_run() -> None:
    assert flow_engine.maintain_concurrency_lease.always == {"raise_on_lease_renewal_failure": False}


def test_the_words_are_those_that_prefect_knows() -> None:
    for function in (services.critical_service_loop, flow_engine.maintain_concurrency_lease):
        given = inspect.getclosurevars(function).nonlocals["original"]
        assert set(function.always) <= set(inspect.signature(given).parameters)


def test_a_loop_outlasts_more_errors_than_prefect_would() -> None:
    tried: list[int] = []

    async def ask() -> None:
        tried.append(1)
        if len(tried) < 30:
            raise httpx.ConnectError("it is away")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        anyio.run(partial(poller.critical_service_loop, ask, interval=0))
    assert len(tried) == 30
