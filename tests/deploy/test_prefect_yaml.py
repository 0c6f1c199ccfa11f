"""`deploy/prefect.yaml` and the templates of its work pools: what Prefect, Docker and Kubernetes make of them."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, WorkPoolConfig
from prefect.client.schemas.objects import ConcurrencyLimitConfig, FlowRun
from prefect.utilities.importtools import import_object
from prefect.utilities.templating import apply_values
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.deployments.serving import deployments, one_at_a_time
from flows.servers.stuck_rule import STARTS_WITHIN_S
from tests.deploy.compose_file import DEPLOY, answers, compose
from tests.deploy.known_variables import unknown

TEXT = (DEPLOY / "prefect.yaml").read_text()
SECRET = re.compile("PASSWORD|AUTH_STRING|USERNAME")
FILE = yaml.safe_load(TEXT)
DEPLOYMENTS = {each["name"]: each for each in FILE["deployments"]}
POOLS = {name: json.loads((DEPLOY / "pools" / f"{name}.json").read_text()) for name in ("docker", "kubernetes")}


def strangers(content: dict[str, Any], model: Any) -> set[str]:
    """Keys that Prefect would pass over in silence."""
    known = set(model.model_fields) | {str(field.alias) for field in model.model_fields.values()}
    return set(content) - known


def entrypoint(deployment: dict[str, Any]) -> str:
    """The flow's name as Python imports it."""
    path, _, function = deployment["entrypoint"].partition(":")
    return f"{path.removesuffix('.py').replace('/', '.')}.{function}"


def test_prefect_accepts_it_and_passes_over_nothing():
    PrefectYamlModel.model_validate(FILE)
    assert strangers(FILE, PrefectYamlModel) == {"definitions"}  # where YAML's anchors stand
    for deployment in FILE["deployments"]:
        assert strangers(deployment, DeploymentConfig) == set()
        assert strangers(deployment["work_pool"], WorkPoolConfig) == set()


def test_every_step_can_be_called_with_what_stands_there():
    for step in [*FILE["build"], *FILE["pull"]]:
        ((name, inputs),) = step.items()
        assert callable(import_object(name)) and inputs == {}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_names_a_flow_parameters_that_it_has_and_a_recipe(name):
    deployment = DEPLOYMENTS[name]
    flow = import_object(entrypoint(deployment))
    assert (DEPLOY.parent / deployment["entrypoint"].partition(":")[0]).is_file()
    flow.validate_parameters(deployment["parameters"])
    assert (DEPLOY.parent / deployment["parameters"].get("recipe", "pipelines/tiny.yaml")).is_file()
    assert deployment["version"] == "{{ code_version }}"  # see flows/deployments/deployed.py


def test_what_align_up_serves_is_deployed_too():
    served = {(each.name, each.flow_name) for each in deployments()}
    made = {name: import_object(entrypoint(each)).name for name, each in DEPLOYMENTS.items()}
    assert served <= set(made.items())


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deploying_again_leaves_alone_the_schedules_that_people_have_made(name):
    """With `schedules` here Prefect would set those of the same slug back, or delete all if one has no slug."""
    assert not {"schedule", "schedules"} & set(DEPLOYMENTS[name])


def test_no_training_hangs_on_a_lease_and_overlapping_retrainings_are_skipped():
    """With a deployment's limit a flow run crashes if the server is away for five minutes; a pool's has no lease."""
    limited = [name for name, each in DEPLOYMENTS.items() if "concurrency_limit" in each]
    assert limited == ["align-retrain"]
    said = {"due_meanwhile": one_at_a_time().collision_strategy.value}  # by the step `of_retraining`
    given = apply_values(DEPLOYMENTS["align-retrain"]["concurrency_limit"], said)
    limit = ConcurrencyLimitConfig.model_validate(given)
    assert set(given) <= set(ConcurrencyLimitConfig.model_fields)
    assert (limit.limit, limit.collision_strategy.value) == (1, "CANCEL_NEW")
    assert limit.grace_period_seconds == STARTS_WITHIN_S


def test_no_secret_is_filled_in_when_it_is_deployed():
    assert "prefect.blocks" not in TEXT and "prefect.variables" not in TEXT
    assert unknown(re.findall(r"\{\{ \$(\w+) \}\}", TEXT)) == set()


@pytest.mark.parametrize("pool", POOLS)
def test_a_deployment_sets_only_what_its_pool_has(pool):
    variables = POOLS[pool]["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(POOLS[pool]["job_configuration"])))
    assert used == set(variables)
    (deployment,) = [each for each in DEPLOYMENTS.values() if each["work_pool"]["name"] == pool]
    assert set(deployment["work_pool"].get("job_variables", {})) <= set(variables)


def values(pool: str, **given: Any) -> dict[str, Any]:
    """What a worker makes of the pool's template for a run of its deployment."""
    (deployment,) = [each for each in DEPLOYMENTS.values() if each["work_pool"]["name"] == pool]
    properties = POOLS[pool]["variables"]["properties"]
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    chosen = {**defaults, **deployment["work_pool"].get("job_variables", {}), **given}
    return apply_values(POOLS[pool]["job_configuration"], chosen)


def test_a_container_has_a_gpu_and_its_secrets_from_blocks():
    job = DockerWorkerJobConfiguration(**values("docker"))
    assert job.container_create_kwargs["device_requests"][0]["Capabilities"] == [["gpu"]]
    assert unknown(job.env) == set()
    secrets = {name: value for name, value in job.env.items() if SECRET.search(name)}
    assert len(secrets) == 3
    assert all(re.fullmatch(r"\{\{ prefect\.blocks\.secret\.[a-z-]+ \}\}", str(value)) for value in secrets.values())


def test_a_container_is_where_composes_servers_and_a_volume_are():
    job, file = DockerWorkerJobConfiguration(**values("docker")), compose(answers())
    assert job.networks == [f"{file['name']}_default"]
    worker = file["services"]["worker"]["environment"]
    shared = {name for name in set(worker) & set(job.env) if not SECRET.search(name)}
    assert {name: job.env[name] for name in shared} == {name: worker[name] for name in shared}
    assert {"PREFECT_UI_URL", "ALIGN_MLFLOW_PAGES", "ALIGN_SLOTS", "ALIGN_MACHINE"} < shared and len(shared) == 9
    places = dict(volume.split(":")[::-1] for volume in job.volumes)
    assert set(places) == {"/data", "/slots"} and places[job.env["ALIGN_SLOTS"]] == f"{file['name']}_slots"


def made_by_the_worker() -> dict[str, Any]:
    """The job of a flow run."""
    job = KubernetesWorkerJobConfiguration(**values("kubernetes", name="run", labels={}))
    job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="run"))
    return job.job_manifest


def test_a_pod_is_as_kubernetes_wants_it_with_a_gpu_on_the_nodes_that_have_one():
    manifest = made_by_the_worker()
    pod = manifest["spec"]["template"]["spec"]
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu" and pod["securityContext"]["runAsNonRoot"]


def test_a_pod_has_its_nodes_name_though_prefect_adds_variables():
    (container,) = made_by_the_worker()["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each for each in container["env"]}
    assert given["ALIGN_MACHINE"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert "PREFECT__FLOW_RUN_ID" in given and unknown({"ALIGN_MACHINE"}) == set()


def test_a_pod_that_is_ended_has_the_time_to_save():
    assert made_by_the_worker()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 90


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes/gpu-worker.yaml", "kubernetes/setup.yaml"])
def test_what_is_deployed_by_pattern_is_every_deployment_on_processes(name: str) -> None:
    """Prefect's `align*` wants something after `align`."""
    from prefect.cli.deploy._config import _parse_name_from_pattern

    (words,) = [line for line in (DEPLOY / name).read_text().splitlines() if "--name align --name" in line]
    patterns = re.findall(r"--name '?([\w*-]+)'?", words)
    every = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    found = [one for pattern in patterns for one in _parse_name_from_pattern(every, pattern)]
    assert found == [one["name"] for one in every if one["work_pool"] == {"name": "local"}]
