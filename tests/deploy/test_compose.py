"""`deploy/compose.yaml`: by its schema; pinned; no password in it; every variable and port is somebody's."""

from __future__ import annotations

import inspect
import json
import re
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request
from prefect.cli.work_pool import update

from flows.deployments.worker import ENDING_S, TELLING_S, TRAINER_S
from flows.servers.choosing import MLFLOW_PORT, PREFECT_PORT
from flows.servers.crash_rule import PATIENCE_S
from tests.deploy.compose_file import COMPOSE, MissingVariableError, answers, commands, compose, example, names, raw
from tests.deploy.known_variables import unknown

RAW, FILE = raw(), compose(answers())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ONCE = {"bucket", "deployments"}  # which do something and end
LASTING = sorted(set(SERVICES) - ONCE)
LISTENS = {"postgres": 5432, "s3": 7070, "mlflow": MLFLOW_PORT, "prefect": PREFECT_PORT}
CLIENTS = ("deployments", "worker", "worker-gpu")
WORKERS = ("worker", "worker-gpu")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|TOKEN")
REFERENCE = re.compile(r"(\$\{\w+:-)?\$\{\w+:\?set it in deploy/\.env\}(?(1)\})")
"""A variable that must be given, or another in its place."""


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
                assert REFERENCE.fullmatch(value), name
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


def test_workers_may_have_a_user_of_their_own_in_mlflow():
    own = {"MLFLOW_WORKER_USERNAME": "workers", "MLFLOW_WORKER_PASSWORD": "of-the-workers"}
    services = compose({**answers(), **own})["services"]
    for client in CLIENTS:
        given = services[client]["environment"]
        assert [given["MLFLOW_TRACKING_USERNAME"], given["MLFLOW_TRACKING_PASSWORD"]] == list(own.values())
    assert services["mlflow"]["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == "the-mlflow_admin_password"


def test_the_database_is_not_healthy_while_it_is_first_made():
    """Its image's server of the first start listens on a socket alone, and ends when the databases are there."""
    test = SERVICES["postgres"]["healthcheck"]["test"]
    assert test[test.index("-h") + 1] == "127.0.0.1"


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


PUBLIC = [
    ({}, "http://127.0.0.1:4200", "http://127.0.0.1:5000"),
    ({"PREFECT_PORT": "4300", "MLFLOW_PORT": "5100"}, "http://127.0.0.1:4300", "http://127.0.0.1:5100"),
    (
        {"PREFECT_PUBLIC_URL": "https://prefect.example.org", "MLFLOW_PUBLIC_HOST": "mlflow.example.org"},
        "https://prefect.example.org", "https://mlflow.example.org",
    ),
    (
        {"BIND": "0.0.0.0", "PREFECT_PUBLIC_URL": "http://10.0.0.5:4200", "MLFLOW_PUBLIC_SCHEME": "http",
         "MLFLOW_PUBLIC_HOST": "10.0.0.5:5000"},
        "http://10.0.0.5:4200", "http://10.0.0.5:5000",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "prefect", "mlflow"), PUBLIC)
def test_browsers_reach_both_servers_where_every_link_leads(given, prefect, mlflow):
    services = compose({**answers(), **given})["services"]
    server = services["prefect"]["environment"]
    assert (server["PREFECT_UI_URL"], server["PREFECT_SERVER_UI_API_URL"]) == (prefect, f"{prefect}/api")
    for client in CLIENTS:
        environment = services[client]["environment"]
        assert (environment["PREFECT_UI_URL"], environment["ALIGN_MLFLOW_PAGES"]) == (prefect, mlflow)
    allowed = services["mlflow"]["environment"]
    assert is_allowed_host_header(allowed["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","), urlsplit(mlflow).netloc)
    assert not should_block_cors_request(mlflow, "POST", allowed["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(","))


def test_mlflow_knows_no_other_names():
    allowed = SERVICES["mlflow"]["environment"]
    assert not is_allowed_host_header(allowed["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","), "10.0.0.5:5000")
    origins = allowed["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert should_block_cors_request("http://10.0.0.5:5000", "POST", origins)


@pytest.mark.parametrize(("given", "limit"), [({}, "1"), ({"ALIGN_RUNS_AT_ONCE": "3"}, "3")])
def test_the_pool_has_a_limit_that_every_up_sets_and_keeps_what_else_was_set(given, limit):
    """`create --overwrite` would send `concurrency_limit: None` and `is_paused: False`."""
    create, change, deploy = commands(compose({**answers(), **given})["services"]["deployments"]["command"][-1])
    assert create[:4] == ["prefect", "work-pool", "inspect", "local"] and "--overwrite" not in create
    assert change[:4] == ["prefect", "work-pool", "update", "local"] and change[-2:] == ["--concurrency-limit", limit]
    assert "concurrency_limit" in inspect.signature(update).parameters and "deploy" in deploy


@pytest.mark.parametrize(("given", "limit", "count"), [({}, "1", "1"), ({"ALIGN_RUNS_AT_ONCE": "2"}, "2", "2")])
def test_a_worker_runs_as_many_as_its_pool_and_has_as_many_gpus_as_is_said(given, limit, count):
    services = compose({**answers(), **given, "ALIGN_GPUS": count})["services"]
    assert all(f"--limit={limit}" in services[name]["command"] for name in WORKERS)
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    (default,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], default["count"]) == (count, "1")


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_the_time_to_wait_for_prefect_before_it_is_called_unhealthy(name):
    assert float(SERVICES[name]["healthcheck"]["start_period"].removesuffix("s")) > PATIENCE_S


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_that_is_stopped_lets_its_run_save_and_has_the_time_for_it(name):
    assert SERVICES[name]["command"][:3] == ["python", "-m", "flows.deployments.worker"]
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > TRAINER_S + TELLING_S + ENDING_S


@pytest.mark.parametrize("name", WORKERS)
def test_workers_share_the_locks_of_the_machines_gpus_and_its_name(name):
    environment = SERVICES[name]["environment"]
    assert f"slots:{environment['ALIGN_SLOTS']}" in SERVICES[name]["volumes"] and "slots" in FILE["volumes"]
    assert environment["ALIGN_MACHINE"]  # else a container's id, and a limit in Prefect for each that there ever was
