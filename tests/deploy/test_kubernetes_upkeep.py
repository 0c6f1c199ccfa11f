"""`deploy/kubernetes` after the first day: applied again, upgraded, reached by browsers, with the forms elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.compose_file import DEPLOY
from tests.deploy.test_kubernetes import FOLDER, PODS, SETTINGS, manifest

PAGES = {"prefect": "PREFECT_UI_URL", "mlflow": "ALIGN_MLFLOW_PAGES"}


@pytest.mark.parametrize("path", [FOLDER / "setup.yaml", FOLDER / "kustomization.yaml", DEPLOY / "README.md"], ids=str)
def test_whoever_applies_it_again_reads_that_the_job_must_go_first(path):
    assert "kubectl -n alignflow delete job align-setup --ignore-not-found" in path.read_text()


def test_mlflow_brings_its_database_up_to_date_while_no_other_uses_it():
    (upgrade,), (server,) = PODS["mlflow"]["initContainers"], PODS["mlflow"]["containers"]
    (database,) = [each.partition("=")[2] for each in server["args"] if each.startswith("--backend-store-uri=")]
    assert upgrade["args"] == ["mlflow", "db", "upgrade", database] and upgrade["envFrom"] == server["envFrom"]
    assert manifest("Deployment", "mlflow")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_ingress_leads_browsers_to_both_servers_and_lets_uploads_pass():
    ingress = manifest("Ingress", "align")
    for rule in ingress["spec"]["rules"]:
        (path,) = rule["http"]["paths"]
        service = path["backend"]["service"]
        assert rule["host"] == urlsplit(SETTINGS["align-settings"][PAGES[service["name"]]]).netloc
        ports = manifest("Service", service["name"])["spec"]["ports"]
        assert service["port"]["name"] in {port["name"] for port in ports}
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]]
    assert len(ingress["spec"]["rules"]) == len(PAGES)
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == "0"


@pytest.mark.parametrize("chosen", ["kubernetes", "local"])
def test_the_forms_are_deployed_to_the_pool_that_the_settings_name_and_to_no_other(tmp_path: Path, chosen: str):
    assert SETTINGS["align-settings"]["ALIGN_FORMS_POOL"] == "kubernetes"
    setup, worker = asked(tmp_path, "align-setup", chosen), asked(tmp_path, "align-gpu-worker", chosen)
    assert any(line.endswith("--name kubernetes") for line in setup)
    assert forms(setup) == (chosen == "kubernetes") and forms(worker) == (chosen == "local")
    assert worker[-1].startswith("-m flows.deployments.worker")
    if chosen == "kubernetes":
        made = (tmp_path / "prefect.yaml").read_text()
        assert "&on_processes {name: kubernetes}" in made and "{name: local}" not in made


def forms(lines: list[str]) -> bool:
    return any("--name align --name align-*" in line for line in lines)


def asked(folder: Path, pod: str, chosen: str) -> list[str]:
    """What a pod's script, which must end well, starts Prefect with."""
    (folder / "asked").unlink(missing_ok=True)
    for name in ("prefect", "python"):
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/asked\n')
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "ALIGN_FORMS_POOL": chosen, "ALIGN_RUNS_AT_ONCE": "1",
        "ALIGN_IMAGE": "registry.example.org/alignflow:1",
    }  # fmt: skip
    script = PODS[pod]["containers"][0]["args"][-1].replace("/tmp/", f"{folder}/")
    subprocess.run([str(shutil.which("sh")), "-ec", script], cwd=DEPLOY.parent, env=environment, check=True)
    return (folder / "asked").read_text().splitlines()
