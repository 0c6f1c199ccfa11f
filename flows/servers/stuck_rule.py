"""A rule of the Prefect server: a flow run that never starts does not keep its pool's only place for ever.

Kubernetes waits for a node or an image without end, and so does Prefect; nor does anyone start what a worker took up
before it died.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from flows.servers.notifying import telling

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

NAME = "align: flow runs that do not start are cancelled"
STARTS_WITHIN_S = 1800
"""A node may have to be made first, and an image with CUDA to come over the network."""
WAITING = ("Pending", "InfrastructurePending")
"""Names of the states of what a worker has taken up; the second since Kubernetes has a pod for it."""
MESSAGE = (
    f"did not start within {STARTS_WITHIN_S // 60} minutes: no node has room for its pod, its image can't be had, or "
    "its worker died. On Kubernetes the run's log says why its pod waited, or `kubectl -n alignflow get events`."
)
SAID = f"{{{{ flow.name }}}} {{{{ flow_run.name }}}} {MESSAGE} {{{{ flow_run|ui_url or '' }}}}"


def stuck_rule() -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    return AutomationCore(
        name=NAME,
        description="Installed by `align up`. Switch it off here if your runs wait longer for a node or an image.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": "align*"}),
            for_each={"prefect.resource.id"},
            after={f"prefect.flow-run.{name}" for name in WAITING},
            # Whatever comes next. One that waits again, after a retry say, has its time again, since that is among it.
            expect={"prefect.flow-run.*"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=STARTS_WITHIN_S),
        ),
        # Not Crashed: with Cancelling a worker deletes the job too, whose pod would otherwise run when a node comes.
        actions=[ChangeFlowRunState(state=StateType.CANCELLING, name=None, message=MESSAGE), *telling(SAID)],
    )
