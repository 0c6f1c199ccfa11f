"""`deploy/compose.yaml`: by its schema; pinned; no password in it; every variable and port is somebody's."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from flows.servers.choosing import MLFLOW_PORT, PREFECT_PORT
from tests.deploy.compose_file import COMPOSE, MissingVariableError, answers, compose, example, names, raw
from tests.deploy.known_variables import unknown

RAW, FILE = raw(), compose(answers())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ONCE = {"bucket", "deployments"}  # which do something and end
LASTING = sorted(set(SERVICES) - ONCE)
LISTENS = {"postgres": 5432, "s3": 7070, "mlflow": MLFLOW_PORT, "prefect": PREFECT_PORT}
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|TOKEN")


def problems(content: Any) -> list[str]:
    schema = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    return [error.message for error in jsonschema.Draft202012Validator(json.loads(schema)).iter_errors(content)]


def test_it_is_as_the_compose_specification_wants_it():
    assert problems(FILE) == [] and problems(RAW) == []
    assert problems({"services": {"a": {"image": "b", "restrat": "always"}}})


def test_all_that_must_be_given_is_asked_for_by_name_and_nothing_else_is():
    asked = names(COMPOSE.read_text())
    assert asked == set(example())
    assert set(example().values()) == {""}
    for name in answers():
        with pytest.raises(MissingVariableError, match=rf"{name}: set it in deploy/\.env"):
            compose({**answers(), name: ""})


def test_every_secret_is_a_reference_without_a_default():
    found = 0
    for service in RAW["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{\w+:\?set it in deploy/\.env\}", value), name
                found += 1
    assert found >= 12


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_image_is_pinned(name):
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+", tag), tag


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_variable_is_read_by_what_is_started_there(name):
    service = SERVICES[name]
    assert unknown(service.get("environment", {}), service["image"].rpartition(":")[0]) == set()


@pytest.mark.parametrize("name", ["PREFECT_API_ULR", "MLFLOW_TRACKING_USER", "ALIGN_HOMES", "PGPASS", "AWS_KEY"])
def test_a_misspelt_variable_is_noticed(name):
    assert unknown({name}) == {name}
    assert unknown({"PREFECT_API_URL"}, "postgres")


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_has_a_health_check_and_is_started_again(name):
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_what_must_not_be_lost_is_on_a_named_volume():
    places = {name: service["volumes"] for name, service in SERVICES.items() if "volumes" in service}
    assert set(places) == {"postgres", "s3", "prefect", "worker", "worker-gpu"}
    for volumes in places.values():
        assert {volume.partition(":")[0] for volume in volumes} <= set(FILE["volumes"])


def test_only_this_machine_reaches_the_servers_unless_told():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "prefect": ["127.0.0.1:4200:4200"]}
    assert compose({**answers(), "BIND": "10.0.0.5"})["services"]["prefect"]["ports"] == ["10.0.0.5:4200:4200"]


def test_every_address_names_a_service_and_the_port_on_which_it_listens():
    for name, port in LISTENS.items():
        assert str(port) in json.dumps(SERVICES[name]) or name == "postgres"
    for name in ("mlflow", "prefect"):
        assert f"--port={LISTENS[name]}" in SERVICES[name]["command"]
    seen = set()
    for service in SERVICES.values():
        for value in service.get("environment", {}).values():
            where = urlsplit(value) if value.startswith("http://") and "*" not in value else None
            if where and where.hostname != "127.0.0.1":
                assert LISTENS[str(where.hostname)] == where.port
                seen.add(where.hostname)
        if "PGHOST" in service.get("environment", {}):
            assert LISTENS[service["environment"]["PGHOST"]] == int(service["environment"]["PGPORT"])
    assert seen == {"s3", "mlflow", "prefect"}


def test_both_servers_ask_for_a_password_and_the_worker_has_it():
    prefect, mlflow, worker = (SERVICES[name] for name in ("prefect", "mlflow", "worker"))
    auth = prefect["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    assert auth == worker["environment"]["PREFECT_API_AUTH_STRING"] == "the-prefect_auth_string"
    assert "--app-name=basic-auth" in mlflow["command"]
    admin = mlflow["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert admin == worker["environment"]["MLFLOW_TRACKING_PASSWORD"] == "the-mlflow_admin_password"


def test_each_server_has_a_database_of_its_own_and_both_are_made():
    addresses = json.dumps([SERVICES["prefect"]["environment"], SERVICES["mlflow"]["command"]])
    asked = set(re.findall(r"postgresql(?:\+asyncpg)?:///(\w+)", addresses))
    made = {SERVICES["postgres"]["environment"]["POSTGRES_DB"]}
    made |= set(re.findall(r"CREATE DATABASE (\w+);", FILE["configs"]["databases"]["content"]))
    assert asked == made == {"prefect", "mlflow"}


def test_nothing_of_ours_may_gain_rights():
    for service in SERVICES.values():
        if service["image"].startswith("alignflow:"):
            assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
