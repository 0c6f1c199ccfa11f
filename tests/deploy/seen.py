"""What a team does with its deployment, and sees of it: flow runs, workers, checkpoints, the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from mlflow.tracking import MlflowClient

from artifacts.manifest import Manifest
from tests.deploy.native import ENVIRONMENT, PATIENCE_S, Native, eventually
from tests.e2e.conftest import Answer, Shop

LOG = logging.getLogger("deploy")
WORDS = {"recipe": "pipelines/tiny.yaml", "until": "sft"}


def deployment(team: Native) -> dict[str, Any]:
    return team.call("/deployments/name/align/align")


def trigger(team: Native, **parameters: Any) -> str:
    """As the button in Prefect's pages does it."""
    body = {"parameters": {**WORDS, **parameters}, "state": {"type": "SCHEDULED"}}
    return str(team.call(f"/deployments/{deployment(team)['id']}/create_flow_run", body)["id"])


def state(team: Native, flow_run: str) -> dict[str, Any]:
    return team.call(f"/flow_runs/{flow_run}")["state"]


def reaches(team: Native, flow_run: str, name: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = state(team, flow_run)
        assert found["name"] == name or found["type"] != "FAILED", found
        return found if found["name"] == name else None

    found = eventually(reached, f"the flow run is {name}")
    LOG.info(f"the flow run is {name}: {found['message']}")
    return found


def logs(team: Native, flow_run: str) -> str:
    found: list[dict[str, Any]] = []
    wanted = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200}
    while page := team.call("/logs/filter", {**wanted, "offset": len(found)}):
        found += page
    return "\n".join(line["message"] for line in found)


def retry(team: Native, flow_run: str) -> None:
    """As the button in Prefect's pages does it."""
    wanted = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    team.call(f"/flow_runs/{flow_run}/set_state", {"state": wanted, "force": True})


def sft_run(tracking: MlflowClient) -> str | None:
    experiments = [each.experiment_id for each in tracking.search_experiments()]
    found = tracking.search_runs(experiments, "tags.`align.uses` = 'sft'")
    return found[0].info.run_id if found else None


def saved(tracking: MlflowClient) -> list[str]:
    """Checkpoints of SFT that another machine could fetch: whole ones."""
    if (run := sft_run(tracking)) is None:
        return []
    folders = [each.path for each in tracking.list_artifacts(run, "checkpoints") if each.is_dir]
    return [path for path in folders if f"{path}/manifest.json" in {e.path for e in tracking.list_artifacts(run, path)}]


def result(home: Path) -> Manifest | None:
    found = list((home / "store").glob("sft-*/manifest.json"))
    return Manifest.read(found[0].parent) if found else None


def checkpoints_of_sft(home: Path) -> list[Path]:
    """Whole ones at a worker, the newest last."""
    found = [path.parent for path in home.glob("align/drafts/sft-*/work/checkpoint-*/manifest.json")]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def stopped_amid_sft(team: Native, name: str) -> list[psutil.Process]:
    """A worker's trainers, held once SFT has saved, so that there is time to look."""
    eventually(lambda: checkpoints_of_sft(team.folder / name), "SFT saves")
    trainers = team.trainers(name)
    for each in trainers:
        each.suspend()
    return trainers


def stop_amid_sft(team: Native, name: str) -> str:
    """Stop a worker once SFT has saved there, not only elsewhere; gives what it saved when it was asked to end."""
    home = team.folder / name
    first = eventually(lambda: checkpoints_of_sft(home), "SFT goes on")[-1]
    eventually(lambda: checkpoints_of_sft(home)[-1] != first, "SFT saves")
    trainers = team.trainers(name)
    assert team.stop(name) == 0 and trainers and not any(each.is_running() for each in trainers)
    newest = checkpoints_of_sft(home)[-1]
    assert f"ended as asked, after {newest.name}" in (newest.parents[1] / "result.json").read_text()
    return newest.name


def align(shop: Shop, *words: str, **environment: str) -> Answer:
    """The command of somebody at another machine."""
    process = shop.start(*words, **environment)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in err, err
    return Answer(process.returncode, out, err)


def asking(team: Native, **other: str) -> dict[str, str]:
    """The variables of somebody who has the passwords."""
    return {"PREFECT_API_URL": team.api, "PREFECT_API_AUTH_STRING": ENVIRONMENT["PREFECT_AUTH_STRING"], **other}


def stored(team: Native) -> Iterator[tuple[str, bytes]]:
    """Every object of the store."""
    import boto3

    given = team.environment("mlflow", team.folder / "mlflow")
    store = boto3.client(
        "s3", endpoint_url=given["MLFLOW_S3_ENDPOINT_URL"], aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"], region_name=given["AWS_DEFAULT_REGION"],
    )  # fmt: skip
    for page in store.get_paginator("list_objects_v2").paginate(Bucket="align"):
        for each in page.get("Contents", []):
            yield each["Key"], store.get_object(Bucket="align", Key=each["Key"])["Body"].read()
