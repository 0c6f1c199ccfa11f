"""The work pools of deploy/: whoever triggers a run there fills in its parameters, and nothing of what runs it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from tests.conftest import ROOT

ASKED = {
    "command": "touch trapped", "image": "trapped", "namespace": "trapped", "working_dir": "/trapped",
    "volumes": ["/:/trapped"],
}  # fmt: skip


def made(pool: str, kind: Any, **asked: Any) -> dict[str, Any]:
    """What a worker makes of the template for a run whose trigger asks for this."""
    template = (ROOT / "deploy" / "pools" / f"{pool}.json").read_text()
    without_secrets = json.loads(template.replace("prefect.blocks", "blocks"))
    nobody = PrefectClient(api="http://127.0.0.1:9/api")  # who is never asked, since no block is named
    made = asyncio.run(kind.from_template_and_values(without_secrets, asked, client=nobody))
    found: dict[str, Any] = made.model_dump(mode="json")
    return found


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        ("process", ProcessJobConfiguration),
        ("docker", DockerWorkerJobConfiguration),
        ("kubernetes", KubernetesWorkerJobConfiguration),
    ],
)
def test_a_trigger_names_nothing_of_what_runs(pool: str, kind: Any):
    assert made(pool, kind, **ASKED) == made(pool, kind)


@pytest.mark.parametrize(
    ("pool", "kind"), [("process", ProcessJobConfiguration), ("kubernetes", KubernetesWorkerJobConfiguration)]
)
def test_nor_its_environment(pool: str, kind: Any):
    """But for a container's: Prefect adds to a template's what is asked for, whatever the template says."""
    assert made(pool, kind, env={"ALIGN_ALLOW": "programs"}) == made(pool, kind)
