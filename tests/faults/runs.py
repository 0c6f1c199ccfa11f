"""Faults of a whole run, `align run` with its flow: of its processes, of the servers, of two runs at once."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

from flows.records import load_records
from tests.e2e.mlflow_servers import Mlflow
from tests.e2e.prefect_server import Prefect
from tests.faults.outcome import Outcome
from tests.faults.reference import Reference
from tests.faults.schedule import Trial
from tests.faults.shop import PATIENCE_S, Shop
from tests.faults.stages import ATTEMPTS, allowed
from tests.faults.work import NotStruckError


def strike(reference: Reference, trial: Trial, folder: Path) -> Outcome:
    """One trial: struck once, run again if need be, compared."""
    for attempt in range(ATTEMPTS):
        outcome, shop = Outcome.of(trial), Shop(reference, trial, folder / str(attempt), 0.5**attempt)
        outcome.allowed = [allowed(trial)]
        with suppress(NotStruckError):
            FAULTS[trial.fault](shop, outcome)
            outcome.injected = 1
            return outcome
    raise AssertionError(f"the stage ended before the fault could strike, {ATTEMPTS} times")


def trainer_killed(shop: Shop, outcome: Outcome) -> None:
    """The trainer alone: the run says so and fails, and the same command goes on."""
    _killed(shop, outcome, trainer=True, flow=False)


def flow_killed(shop: Shop, outcome: Outcome) -> None:
    """The run's own process: its trainer may not outlive it."""
    _killed(shop, outcome, trainer=False, flow=True)


def both_killed(shop: Shop, outcome: Outcome) -> None:
    """At the same moment."""
    _killed(shop, outcome, trainer=True, flow=True)


def _killed(shop: Shop, outcome: Outcome, *, trainer: bool, flow: bool) -> None:
    process = shop.run()
    victim = shop.until_it_trains(process)
    if flow:
        process.kill()
    if trainer:
        with suppress(psutil.NoSuchProcess):  # it dies with its flow
            victim.kill()
    _, err = process.communicate(timeout=PATIENCE_S)
    if not flow and (process.returncode != 1 or "was ended by SIGKILL" not in err):
        outcome.remarks.append(f"status {process.returncode}: {err[-800:]}")
    orphans, steps, said = shop.orphans(), shop.steps(), len(shop.log())
    shop.finish(outcome, shop.run())
    outcome.orphans += orphans
    outcome.repeated = [shop.repeated(steps, said)]
    shop.finish_tracking(outcome)


def mlflow_stopped(shop: Shop, outcome: Outcome) -> None:
    """While the stage trains, and started again some seconds later: the run ends well all the same."""
    server = Mlflow(shop.folder / "mlflow")
    server.start()
    try:
        shop.environment["MLFLOW_TRACKING_URI"] = shop.tracking_uri = server.uri
        process = shop.run()
        shop.until_it_trains(process)
        server.stop()
        time.sleep(shop.draw.uniform(0.5, 8))
        server.start()
        shop.finish(outcome, process)
        shop.undisturbed(outcome)
        shop.finish_tracking(outcome)
    finally:
        server.stop()


def prefect_stopped(shop: Shop, outcome: Outcome) -> None:
    """While the stage trains, for good: the run ends well, and `align sync` tells the server when it is back."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    server = Prefect({**own, "PREFECT_HOME": str(shop.folder / "prefect")})
    server.start()
    try:
        shop.environment |= {"PREFECT_API_URL": server.api, "PREFECT_CLIENT_MAX_RETRIES": "1"}  # it waits less long
        process = shop.run()
        shop.until_it_trains(process)
        server.stop()
        shop.finish(outcome, process)
        shop.undisturbed(outcome)
        server.start()
        shop.finish_tracking(outcome)
        state = server.call(f"/flow_runs/{load_records(shop.home)[0].flow_run_id}")["state_type"]
        if state != "COMPLETED":
            outcome.recovered = False
            outcome.remarks.append(f"Prefect shows the flow run as {state}")
    finally:
        server.stop()


def two_at_once(shop: Shop, outcome: Outcome) -> None:
    """One trains while the other waits for it; the one that trains is killed, and the other takes over."""
    both = [shop.run(), shop.run()]
    above = {parent.pid for parent in shop.until_it_trains(both[0]).parents()}
    trains, waits = sorted(both, key=lambda process: process.pid not in above)
    trains.kill()
    steps, before = shop.steps(), len(shop.log())
    trains.communicate(timeout=PATIENCE_S)
    if "which works on the same stage" not in shop.finish(outcome, waits):
        raise NotStruckError
    outcome.repeated = [shop.repeated(steps, before)]
    shop.finish_tracking(outcome)


FAULTS = {
    "run: trainer killed": trainer_killed, "run: flow killed": flow_killed, "run: both killed": both_killed,
    "run: MLflow stopped": mlflow_stopped, "run: Prefect stopped": prefect_stopped, "run: two at once": two_at_once,
}  # fmt: skip
