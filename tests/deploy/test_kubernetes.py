"""`deploy/kubernetes`: by Kubernetes' schemas; secrets by reference; ports, names and commands that fit together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from flows.deployments.worker import ENDING_S, TELLING_S, TRAINER_S
from tests.deploy.compose_file import DEPLOY, answers, commands, compose, example
from tests.deploy.known_variables import unknown
from tests.deploy.test_compose import LISTENS, SECRET
from tests.deploy.test_prefect_yaml import POOLS

FOLDER = DEPLOY / "kubernetes"
VERSION = "1.33"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
MANIFESTS = [each for path in FILES for each in yaml.safe_load_all(path.read_text())]
SECRETS = {each["name"]: example(FOLDER / f"{each['envs'][0]}.example") for each in KUSTOMIZATION["secretGenerator"]}
SETTINGS = {
    each["name"]: dict(line.split("=", 1) for line in each["literals"]) for each in KUSTOMIZATION["configMapGenerator"]
}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Those too that run before."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in MANIFESTS:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


PODS = dict(pods())


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


RUN = POOLS["kubernetes"]["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
"""The pod of a flow run."""
OWN = re.compile(r"^  # (- name: align-recipes\n)  # (  files: .*\n)", re.MULTILINE)
"""What whoever has recipes of their own uncomments."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_manifest_is_as_its_schema_wants_it(path):
    for manifest in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_misspelt_field_is_noticed():
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSION, strict=True)


def test_every_file_is_used_or_offered():
    named = set(KUSTOMIZATION["resources"])
    assert {path.name for path in FILES} - named == {"gpu-worker.yaml", "ingress.yaml"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which builds a kustomization, is not here")
@pytest.mark.parametrize("own", [False, True])
def test_kubectl_builds_it_with_one_pinned_image_for_all(tmp_path: Path, own: bool):
    shutil.copytree(FOLDER, tmp_path / "k")
    for name in ("run", "servers"):
        filled = "".join(f"{key}=x\n" for key in example(FOLDER / f"{name}.env.example"))
        (tmp_path / "k" / f"{name}.env").write_text(filled)
    if own:
        text = OWN.sub(r"  \1  \2", (FOLDER / "kustomization.yaml").read_text())
        text = re.sub(r"worker\.yaml\]  # (.*)", r"worker.yaml, \1]", text)
        (tmp_path / "k" / "kustomization.yaml").write_text(text)
        for name in ("my.yaml", "my.jsonl"):
            (tmp_path / "k" / name).touch()
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path / "k")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for manifest in built:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    (image,) = set(re.findall(r"image: (\S+)", done.stdout))
    assert re.search(r":\d+\.\d+", image) and f"value: {image}" in done.stdout  # flow runs have it too
    assert {each["metadata"].get("namespace") for each in built if each["kind"] != "Namespace"} == {"alignflow"}
    maps = {each["metadata"]["name"]: set(each["data"]) for each in built if each["kind"] == "ConfigMap"}
    assert maps.get("align-recipes") == ({"my.yaml", "my.jsonl"} if own else None)


@pytest.mark.parametrize("name", PODS)
def test_variables_are_known_and_secrets_are_references(name):
    for container in containers(PODS[name]):
        for variable in container.get("env", []):
            reference = variable["name"].endswith(("_SECRET_NAME", "_SECRET_KEY"))
            assert reference or not SECRET.search(variable["name"])
            assert unknown({variable["name"]}) == set()
        for source in container["envFrom"]:
            ((kind, named),) = source.items()
            assert named["name"] in (SECRETS if kind == "secretRef" else SETTINGS)


def test_what_is_generated_has_known_variables_and_no_value_of_a_secret():
    for variables in (*SECRETS.values(), *SETTINGS.values()):
        assert unknown(variables) == set()
    assert all(set(variables.values()) == {""} for variables in SECRETS.values())
    assert not any(SECRET.search(name) for variables in SETTINGS.values() for name in variables)


def test_what_the_template_and_the_worker_refer_to_is_there():
    (run,) = RUN["containers"]
    assert run["envFrom"] == PODS["align-worker"]["containers"][0]["envFrom"]
    given = {each["name"]: each["value"] for each in PODS["align-worker"]["containers"][0]["env"]}
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert given[f"{prefix}_KEY"] in SECRETS[given[f"{prefix}_NAME"]]
    assert given["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == KUSTOMIZATION["namespace"]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_nothing_and_says_what_it_takes(name):
    pod, (container,) = PODS[name], PODS[name]["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["enableServiceLinks"] is False
    for each in containers(pod):
        assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert each["image"] == "alignflow" and each["resources"]["limits"]["memory"]
    ports = {port["name"] for port in container.get("ports", [])}
    probes = [container[each]["httpGet"]["port"] for each in container if each.endswith("Probe")]
    assert set(probes) <= ports and (probes or name == "align-setup")


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_server_is_started_as_compose_starts_it_and_found_where_it_listens(name):
    (container,) = PODS[name]["containers"]
    filled = re.sub(r"\$\((\w+)\)", lambda found: SETTINGS["align-servers"][found[1]], json.dumps(container["args"]))
    assert json.loads(filled) == compose(answers())["services"][name]["command"]
    assert {"configMapRef": {"name": "align-servers"}} in container["envFrom"]
    assert container["ports"][0]["containerPort"] == LISTENS[name]
    service = manifest("Service", name)
    assert service["spec"]["ports"][0]["port"] == LISTENS[name]
    asked = SETTINGS["align-settings"]["PREFECT_API_URL" if name == "prefect" else "MLFLOW_TRACKING_URI"]
    assert asked.removesuffix("/api") == f"http://{name}:{LISTENS[name]}"


def test_the_worker_with_a_gpu_gets_one_on_a_node_that_has_it():
    pod = PODS["align-gpu-worker"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "livenessProbe" not in container  # which would end a training when Prefect is away for some minutes
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}


@pytest.mark.parametrize("pod", [RUN, PODS["align-gpu-worker"]], ids=["run", "gpu-worker"])
def test_runs_read_recipes_of_ones_own_if_there_are_any(pod):
    (volume,) = [each for each in pod["volumes"] if "configMap" in each]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
    assert volume["configMap"] == {"name": "align-recipes", "optional": True} and mount["readOnly"]
    assert mount["mountPath"] in SETTINGS["align-settings"]["ALIGN_DATA_ROOTS"].split(":")


def test_more_data_is_mounted_as_the_readme_says():
    text = (DEPLOY / "README.md").read_text()
    volume, mount = map(json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0].splitlines())
    pod = json.loads(json.dumps(PODS["align-gpu-worker"]))
    pod["volumes"].append(volume)
    pod["containers"][0]["volumeMounts"].append(mount)
    spec = {"selector": {"matchLabels": {}}, "template": {"metadata": {}, "spec": pod}}
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}
    kubernetes_validate.validate(manifest, VERSION, strict=True)
    assert volume["name"] == mount["name"] and f"`:{mount['mountPath']}` to `ALIGN_DATA_ROOTS`" in text


def test_links_lead_where_browsers_reach_the_servers():
    run, servers = SETTINGS["align-settings"], SETTINGS["align-servers"]
    assert run["PREFECT_UI_URL"] == servers["PREFECT_UI_URL"]
    assert servers["PREFECT_SERVER_UI_API_URL"] == f"{run['PREFECT_UI_URL']}/api"
    pages = run["ALIGN_MLFLOW_PAGES"]
    assert urlsplit(pages).netloc in servers["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert pages in servers["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")


@pytest.mark.parametrize(("name", "pool"), [("align-setup", "kubernetes"), ("align-gpu-worker", "local")])
def test_a_pool_has_the_limit_of_the_settings_and_keeps_what_else_was_set(name, pool):
    create, change = [words for words in commands(PODS[name]["containers"][0]["args"][-1]) if "work-pool" in words]
    assert create[:4] == ["prefect", "work-pool", "inspect", pool] and "--overwrite" not in create
    assert change[:4] == ["prefect", "work-pool", "update", pool]
    assert change[-2:] == ["--concurrency-limit", '"$ALIGN_RUNS_AT_ONCE"']
    assert SETTINGS["align-settings"]["ALIGN_RUNS_AT_ONCE"] == "1"


def test_the_worker_with_a_gpu_lets_its_run_save_and_is_known_by_its_node():
    pod = PODS["align-gpu-worker"]
    (container,) = pod["containers"]
    command = commands(container["args"][-1])[-1]
    assert command[0] == "exec" and command[1:] == compose(answers())["services"]["worker"]["command"]
    assert pod["terminationGracePeriodSeconds"] > TRAINER_S + TELLING_S + ENDING_S
    machine = {"name": "ALIGN_MACHINE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    assert machine in container["env"]
