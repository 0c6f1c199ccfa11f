"""`deploy/prefect.yaml` and the templates of its work pools: what Prefect, Docker and Kubernetes make of them."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, RawScheduleConfig, WorkPoolConfig
from prefect.utilities.importtools import import_object
from prefect.utilities.templating import apply_values
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.deployments.serving import deployments
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
        for schedule in deployment.get("schedules", []):
            RawScheduleConfig.model_validate(schedule)


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


def test_no_deployment_trains_by_itself_before_somebody_wants_it():
    assert all(not each["active"] for one in DEPLOYMENTS.values() for each in one.get("schedules", []))


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
    assert {name: job.env[name] for name in shared} == {name: worker[name] for name in shared} and len(shared) == 5
    assert job.volumes[0].split(":")[1] == "/data"


def test_a_pod_is_as_kubernetes_wants_it_with_a_gpu_on_the_nodes_that_have_one():
    job = KubernetesWorkerJobConfiguration(**values("kubernetes", name="run"))
    manifest = {**job.job_manifest, "metadata": {"generateName": "run-", "namespace": "alignflow"}}
    pod = manifest["spec"]["template"]["spec"]
    pod["containers"][0].update(env=[], args=["prefect", "flow-run", "execute"])  # as the worker sets them
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu" and pod["securityContext"]["runAsNonRoot"]
