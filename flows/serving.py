"""What `align up` serves: the deployments that people trigger and schedule in Prefect's pages.

`python -m flows.serving` registers them with the Prefect server that PREFECT_API_URL names, and runs what is asked of
them on this machine, each flow run in a process of its own.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.deployments.runner import RunnerDeployment
    from prefect.flows import Flow

WhileRunning = Literal["together", "queue", "skip"]
"""What becomes of a flow run that is due while another of its deployment goes on: it runs too, waits, or is
`Cancelled`."""


def deployments() -> list[RunnerDeployment]:
    """All that is served. A deployment with another form is one more line here."""
    from flows.align import align

    return [
        deployment(
            align,
            name="align",
            description="Run a recipe; stages whose inputs have not changed come from the cache.",
            parameters={"recipe": "pipelines/tiny.yaml"},
        ),
    ]


def deployment(flow: Flow[Any, Any], *, while_running: WhileRunning = "together", **more: Any) -> RunnerDeployment:
    """A flow as it is served; `more` is what Prefect's own `from_flow` takes, schedules for instance.

    How many flow runs go on at all, of whichever deployment, is `align up --limit`'s.
    """
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    # A module, so that it need not be served from the root of the clone.
    where = {"entrypoint_type": EntrypointType.MODULE_PATH, "concurrency_limit": _collisions(while_running)}
    return RunnerDeployment.from_flow(flow, **{**where, **more})


def _collisions(while_running: WhileRunning) -> ConcurrencyLimitConfig | None:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

    if while_running == "together":
        return None
    strategy = {"queue": ConcurrencyLimitStrategy.ENQUEUE, "skip": ConcurrencyLimitStrategy.CANCEL_NEW}[while_running]
    return ConcurrencyLimitConfig(limit=1, collision_strategy=strategy)


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(prog="python -m flows.serving")
    parser.add_argument("--limit", type=int, default=1, help="so many flow runs at the same time (1)")
    limit = parser.parse_args().limit
    found = deployments()
    from prefect import serve

    from flows.home import align_home
    from flows.lost import end_all_lost, tell_prefect
    from flows.servers.crash_rule import install_crash_rule, wait_for_prefect
    from flows.shown_slots import install_limits

    wait_for_prefect()
    install_crash_rule()
    install_limits()
    for lost in end_all_lost(align_home()):  # with the machine, say
        tell_prefect(align_home(), lost)
    serve(*found, pause_on_shutdown=False, print_starting_message=False, limit=limit)


if __name__ == "__main__":
    main()
