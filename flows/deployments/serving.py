"""What `align up` serves: the deployments that people trigger and schedule in Prefect's pages.

`python -m flows.deployments.serving` registers them with the Prefect server that PREFECT_API_URL names, and runs what
is asked of them on this machine, each flow run in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from artifacts.errors import UserError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events import DeploymentEventTrigger

DATA_CHANGED = "align.data.changed"
"""The event on which `align-retrain` runs."""
OVERLAP, STRATEGIES = "ALIGN_RETRAIN_OVERLAP", {"skip": "CANCEL_NEW", "queue": "ENQUEUE"}
"""What becomes of a retraining that is due while another goes on; its values, and what Prefect calls them."""


def deployments() -> list[RunnerDeployment]:
    """All that is served: any recipe, a form for each method, several methods compared, and retraining."""
    from flows.align import align
    from flows.deployments.methods import FLOWS, align_compare
    from flows.retrain import align_retrain

    return [
        _deployed(align, "Run any recipe.", parameters={"recipe": "pipelines/tiny.yaml"}),
        *(_deployed(each, str(each.description)) for each in (*FLOWS.values(), align_compare)),
        _deployed(
            align_retrain, str(align_retrain.description), concurrency_limit=one_at_a_time(), triggers=[on_new_data()]
        ),
    ]


def one_at_a_time() -> ConcurrencyLimitConfig:
    """Of `align-retrain`; raises UserError where the environment asks for no strategy that there is."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

    if (said := os.environ.get(OVERLAP) or "skip") not in STRATEGIES:
        raise UserError(f"{OVERLAP}: wanted {' or '.join(STRATEGIES)}, got {said!r}")
    return ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy(STRATEGIES[said]))


def on_new_data() -> DeploymentEventTrigger:
    """Retrains what the event's payload names, as far as it does; the rest is as the deployment has it."""
    from prefect.events import DeploymentEventTrigger

    return DeploymentEventTrigger(
        name="align: retrain when data changed",
        expect={DATA_CHANGED},
        parameters={
            name: {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{name} or {default!r} }}}}"}
            for name, default in (("recipe", "pipelines/quickstart.yaml"), ("model", ""))
        },
    )


def _deployed(flow: Flow[Any, Any], description: str, **more: Any) -> RunnerDeployment:
    """Under the flow's own name, found by its module, so that it need not be served from the root of the clone."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    return RunnerDeployment.from_flow(
        flow,
        name=flow.name,
        description=f"{description} Stages whose inputs have not changed come from the cache.",
        **more,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def install_rules() -> None:
    """Ours, on the Prefect server; a step of deploy/prefect.yaml too."""
    from flows.servers.crash_rule import crash_rule
    from flows.servers.notifying import install_notifications
    from flows.servers.rules import install
    from flows.servers.stuck_rule import stuck_rule

    install(crash_rule())
    install(stuck_rule())
    install_notifications()


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(prog="python -m flows.deployments.serving")
    parser.add_argument("--limit", type=int, default=1, help="so many flow runs at the same time (1)")
    limit = parser.parse_args().limit
    found = deployments()
    from prefect import serve

    from flows.deployments.set_by_people import leave_as_set
    from flows.home import align_home
    from flows.running.lost import tell_of_all
    from flows.running.outlasting import outlast_prefect
    from flows.running.shown_slots import install_limits
    from flows.servers.crash_rule import wait_for_prefect

    wait_for_prefect()
    leave_as_set(found, partial(print, file=sys.stderr))
    install_rules()
    install_limits()
    tell_of_all(align_home(), partial(print, file=sys.stderr))  # of what ended with the machine, say
    outlast_prefect()
    serve(*found, pause_on_shutdown=False, print_starting_message=False, limit=limit)


if __name__ == "__main__":
    main()
