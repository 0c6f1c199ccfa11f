"""What `align up` serves: the deployments that people trigger and schedule in Prefect's pages.

`python -m flows.serving` registers them with the Prefect server that PREFECT_API_URL names, and runs what is asked of
them on this machine, each flow run in a process of its own.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment


def deployments() -> list[RunnerDeployment]:
    """All that is served: any recipe, a form for each method, and several methods compared."""
    from flows.align import align
    from flows.methods import FLOWS, align_compare

    return [
        _deployed(align, "Run any recipe.", recipe="pipelines/tiny.yaml"),
        *(_deployed(each, str(each.description)) for each in (*FLOWS.values(), align_compare)),
    ]


def _deployed(flow: Flow[Any, Any], description: str, **parameters: Any) -> RunnerDeployment:
    """Under the flow's own name, found by its module, so that it need not be served from the root of the clone."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    return RunnerDeployment.from_flow(
        flow,
        name=flow.name,
        description=f"{description} Stages whose inputs have not changed come from the cache.",
        parameters=parameters,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


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

    wait_for_prefect()
    install_crash_rule()
    for lost in end_all_lost(align_home()):  # with the machine, say
        tell_prefect(align_home(), lost)
    serve(*found, pause_on_shutdown=False, print_starting_message=False, limit=limit)


if __name__ == "__main__":
    main()
