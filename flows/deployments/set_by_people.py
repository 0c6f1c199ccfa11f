"""What people have set on a deployment's page, which stays as they left it when the deployment is served again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.deployments.runner import RunnerDeployment

THEIRS = {"schedules", "parameters", "paused", "tags", "concurrency_limit", "concurrency_options"}
"""Fields that Prefect would put back as they were at first, unless nothing is said of them."""


def leave_as_set(found: Iterable[RunnerDeployment], say: Callable[[str], object]) -> None:
    """Have these say nothing of what people may have set, as far as they themselves do not depend on it.

    Default parameters that the form of this version can't take are ours again, or Prefect would refuse them all.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        for each in found:
            own = {"concurrency_limit", "concurrency_options"} if each.concurrency_limit is not None else set()
            each.model_fields_set.difference_update(THEIRS - own)
            _leave_switched_off(each, client)
            try:
                there = client.read_deployment_by_name(f"{each.flow_name}/{each.name}")
            except ObjectNotFound:
                continue
            if not _takes(each, there):
                each.model_fields_set.add("parameters")
                say(f"{each.name}: its form takes {there.parameters} no more, and has its own defaults again")


def of_retraining() -> dict[str, Any]:
    """A step of `prefect deploy`: what becomes of what is due meanwhile, and whether new data still start it."""
    from prefect.client.orchestration import get_client

    from flows.deployments.serving import on_new_data, one_at_a_time

    with get_client(sync_client=True) as client:
        switched_on = _is_switched_on(str(on_new_data().name), client)
    return {"due_meanwhile": one_at_a_time().collision_strategy.value, "on_new_data": switched_on}


def _leave_switched_off(deployment: RunnerDeployment, client: SyncPrefectClient) -> None:
    """With its deployment each trigger is made anew."""
    from prefect.events import DeploymentEventTrigger

    for trigger in deployment.triggers:
        if isinstance(trigger, DeploymentEventTrigger):
            trigger.enabled = _is_switched_on(str(trigger.name), client)


def _is_switched_on(trigger: str, client: SyncPrefectClient) -> bool:
    return all(one.enabled for one in client.read_automations_by_name(trigger))


def _takes(deployment: RunnerDeployment, there: DeploymentResponse) -> bool:
    from prefect.utilities.schema_tools import ValidationError, validate

    form = deployment._parameter_openapi_schema.model_dump(exclude_unset=True)
    try:
        validate(there.parameters, form, raise_on_error=True, ignore_required=True)
    except ValidationError:
        return False
    return set(there.parameters) <= set(form.get("properties", {}))
