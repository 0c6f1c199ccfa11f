"""What an MLflow run carries from its start: parameters and data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.tracking import MlflowClient

from artifacts.kinds import Dataset as Rows
from artifacts.kinds import Report
from flows.tracking.points import accepted
from pipelines.plan import Planned

TRAINING, HELD_OUT = "training", "held-out"
"""What a data set is for."""


def read_by(planned: Planned) -> list[dict[str, str]]:
    """What a stage reads from outside the store, with our digest: MLflow's own looks at the first rows only."""
    return [
        {
            "name": f"{planned.label}.{name}", "digest": value["sha256"], "source": str(getattr(planned.stage, name)),
            "context": HELD_OUT if name.startswith("test_") else TRAINING,
        }
        for name, value in planned.payload["content"].items()
        if isinstance(value, Mapping) and "sha256" in value
    ]  # fmt: skip


def data_of(planned: Planned, labels: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows that a stage takes from others, under their keys."""
    context = HELD_OUT if isinstance(planned.handle, Report) else TRAINING
    return [
        {"name": labels[artifact.key], "digest": artifact.key, "source": str(artifact.path), "context": context}
        for artifact in planned.stage.bound().values()
        if isinstance(artifact, Rows)
    ]


def log_params(client: MlflowClient, run: str, params: Mapping[str, Any]) -> None:
    """Parameters, however many."""
    entries = [Param(accepted(name), str(value)[:6000]) for name, value in params.items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run, params=entries[start : start + 100])


def log_data(client: MlflowClient, run: str, data: list[dict[str, str]]) -> None:
    """Data sets by name, digest and source."""
    inputs = []
    for one in data:
        source = json.dumps({"uri": one["source"]})
        dataset = Dataset(name=one["name"], digest=one["digest"][:36], source_type="local", source=source)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", one.get("context", TRAINING))]))
    if inputs:
        client.log_inputs(run, inputs)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `lora.rank`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
