"""`deploy/Dockerfile`: pinned, not root, made of what the repository has."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from packaging.requirements import Requirement
from prefect.settings.models.worker import WorkerWebserverSettings

from flows.servers.crash_rule import PATIENCE_S
from tests.deploy.compose_file import DEPLOY, answers, compose

ROOT = DEPLOY.parent
TEXT = (DEPLOY / "Dockerfile").read_text()
LINES = TEXT.replace("\\\n", " ").splitlines()


def of(word: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{word} ")]


def test_the_base_is_pinned_and_python_is_one_that_we_support():
    (base,) = [line.removeprefix("PYTHON_IMAGE=") for line in of("ARG") if line.startswith("PYTHON_IMAGE")]
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert version and {line.split()[0] for line in of("FROM")} == {"${PYTHON_IMAGE}"}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == f">={version[1]}"


def test_everything_is_installed_in_the_tested_versions():
    installs = re.findall(r"pip install ((?:(?!pip install|&&|;;).)*)", " ".join(of("RUN")))
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in each or "torch==' constraints.txt" in each for each in installs)


def test_every_file_names_the_image_of_this_version():
    """The sed in setup.yaml too, which finds nothing to replace where the pool's image has another name."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    named = {
        path.relative_to(DEPLOY): re.findall(r"alignflow:(\d[\w.]*)|newTag: (\d[\w.]*)", path.read_text())
        for path in files
    }
    found = {path: {one or other for one, other in tags} for path, tags in named.items() if tags}
    assert {str(path) for path in found} >= {
        "compose.yaml", "pools/docker.json", "pools/kubernetes.json", "kubernetes/setup.yaml",
        "kubernetes/kustomization.yaml", "README.md",
    }  # fmt: skip
    assert set().union(*found.values()) == {version}
    wanted = re.search(r'sed "s\|([^|]+)\|', (DEPLOY / "kubernetes" / "setup.yaml").read_text())
    assert wanted and f'"{wanted[1]}"' in (DEPLOY / "pools" / "kubernetes.json").read_text()


def test_it_runs_as_a_user_without_rights():
    assert of("USER")[-1] == "1000:1000"
    assert TEXT.index("USER ") > TEXT.rindex("COPY ")


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for line in of("COPY"):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            if not source.startswith("/"):
                assert (ROOT / source).exists() and f"!{source}" in ignored
    assert {"*", "deploy/.env", "deploy/kubernetes/*.env"} <= set(ignored)


def test_no_host_is_named_but_this_one():
    assert set(re.findall(r"https?://([^/:]+)", TEXT)) == {"127.0.0.1"}


def requirements(*extras: str) -> Iterator[str]:
    """What these extras of ours install beside our own dependencies, by name."""
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in (Requirement(line) for extra in extras for line in offered[extra]):
        if requirement.name == "alignflow":
            yield from requirements(*requirement.extras)
        else:
            yield requirement.name


def test_what_measures_gpus_is_in_it_in_a_tested_version():
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', TEXT)
    assert "nvidia-ml-py" in set(requirements(*extras.split(",")))
    assert re.search(r"^nvidia-ml-py==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_its_user_may_write_to_the_folders_that_are_volumes():
    (made,) = re.findall(r"install -d -o align -g align (.*)", " ".join(of("RUN")))
    assert {"/data", "/slots"} <= set(made.split())


def test_what_is_fetched_from_a_hub_lies_on_the_volume():
    (home,) = re.findall(r"\bHF_HOME=(\S+)", " ".join(of("ENV")))
    assert home.startswith(f"{of('VOLUME')[0]}/")
    worker = compose(answers())["services"]["worker"]
    assert "HF_HOME" not in worker["environment"] and f"worker:{of('VOLUME')[0]}" in worker["volumes"]


def test_it_runs_a_worker_that_lets_its_run_save():
    assert of("CMD")[-1].startswith('["python", "-m", "flows.deployments.worker", "--type", "process"')


def test_its_health_is_that_of_the_worker_that_it_runs():
    port = WorkerWebserverSettings.model_fields["port"].default
    assert f"http://127.0.0.1:{port}/health" in of("HEALTHCHECK")[0] and "--with-healthcheck" in of("CMD")[-1]
    (period,) = re.findall(r"--start-period=(\d+)s", of("HEALTHCHECK")[0])
    assert int(period) > PATIENCE_S  # for which it waits for Prefect
