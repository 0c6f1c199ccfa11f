"""`deploy/README.md`: its variables are read by something, its commands start what is there."""

from __future__ import annotations

import re
import shlex

import pytest
from mlflow.server.auth.client import AuthServiceClient

from tests.deploy.compose_file import DEPLOY, answers, compose, example
from tests.deploy.known_variables import unknown

TEXT = (DEPLOY / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]  # fmt: skip


def exported() -> dict[str, str]:
    """What a machine elsewhere is given."""
    words = [word for line in COMMANDS if line.startswith("$ export ") for word in shlex.split(line, comments=True)[2:]]
    return dict(word.split("=", 1) for word in words)


def test_every_variable_is_somebodys():
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)[`=]", TEXT)) | set(exported())
    assert len(named) > 20 and unknown(named - set(example())) == set()


def test_a_machine_elsewhere_has_the_variables_of_composes_worker():
    worker = set(compose(answers())["services"]["worker"]["environment"])
    own = {"ALIGN_MACHINE", "ALIGN_SLOTS", "ALIGN_OTHER_CODE", "PREFECT_HOME"}  # a container's; that have a default
    assert set(exported()) == {name for name in worker - own if "WEBSERVER" not in name}


def test_its_worker_is_composes():
    (line,) = [line for line in COMMANDS if "--type process" in line]
    here = shlex.split(line)[1:]
    there = [part for word in compose(answers())["services"]["worker"]["command"] for part in word.split("=")]
    assert here[0] == ".venv/bin/python" and here[1:] == there[1:-1] and there[-1] == "--with-healthcheck"


@pytest.mark.parametrize("pool", ["local", "docker"])
def test_a_pool_made_by_hand_has_a_limit(pool):
    assert f"prefect work-pool set-concurrency-limit {pool} " in " ".join(TEXT.split())


def test_a_schedule_is_made_by_command():
    (line,) = [line for line in COMMANDS if "schedule create" in line]
    words = shlex.split(line)
    assert words[words.index("prefect") :][:4] == ["prefect", "deployment", "schedule", "create"]
    assert "align/align" in words and words[words.index("--timezone") + 1] == "UTC"


@pytest.mark.parametrize("name", ["PREFECT_PUBLIC_URL", "MLFLOW_PUBLIC_SCHEME", "MLFLOW_PUBLIC_HOST"])
def test_whoever_opens_the_ports_reads_what_else_must_be_set(name):
    (item,) = [item for item in re.split(r"^- ", TEXT, flags=re.MULTILINE) if "`BIND=0.0.0.0`" in item]
    assert f"`{name}=" in item and name in example()


def test_a_workers_account_may_remove_older_checkpoints():
    assert 'grant_user_permission(NAME, "experiment", "*", "MANAGE")' in TEXT
    assert hasattr(AuthServiceClient, "grant_user_permission")


def test_extended_attributes_are_backed_up_and_restored():
    """Where the store keeps what it knows of its objects."""
    made, restored = [line for line in COMMANDS if " tar " in line]
    for line in (made, restored):
        assert "--xattrs --xattrs-include='user.*'" in line and "postgres:17.6-bookworm tar" in " ".join(line.split())
    assert compose(answers())["services"]["postgres"]["image"] in made
    assert "-cf /to/s3.tar" in made and "-xpf /from/s3.tar" in restored


def test_kubernetes_commands_wait_for_what_the_next_one_needs():
    words = [line for line in COMMANDS if line.startswith("$ kubectl")]
    order = [
        next(place for place, line in enumerate(words) if part in line)
        for part in ("delete job align-setup", "apply --kustomize", "available deployment", "job/align-setup", "exec")
    ]
    assert order == sorted(order)
