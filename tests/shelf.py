"""A store of results that no stage had to be run for, and reports as an evaluation writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.fingerprint import digest
from artifacts.store import Store
from pipelines.comparison.policies import Compared


class Shelf:
    """Commits results by what their keys are made of."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def made(
        self, uses: str, kind: str, *, inputs: Mapping[str, str] | None = None, fields: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None, seed: int | None = 0, seconds: float = 1.0,
        files: Mapping[str, str] | None = None, points: Sequence[Mapping[str, float]] = (),
    ) -> str:  # fmt: skip
        """A result with its manifest, as after a run; gives its key."""
        payload = {"schema": 1, "uses": uses, "version": 1, "fields": dict(fields or {}), "content": {}}
        payload |= {"inputs": dict(inputs or {})} | ({} if seed is None else {"seed": seed})
        key = digest(payload)
        draft = self.store.draft(uses, key)
        if self.store.folder(uses, key).exists():
            return key
        (draft / "out").mkdir(parents=True)
        for name, text in {"some": key, **(files or {})}.items():
            (draft / "out" / name).write_text(text)
        lines = [{"step": 8 * n, "optimizer_step": n, "time": 0.0, "metrics": one} for n, one in enumerate(points, 1)]
        if lines:
            (draft / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.store.commit(
            uses=uses, key=key, kind=kind, payload=payload, fields=dict(fields or {}),
            metrics={"cost/seconds": seconds, **(metrics or {})}, seconds=seconds, source_digest="",
        )  # fmt: skip
        return key

    def folder(self, uses: str, key: str) -> Path:
        return self.store.folder(uses, key) / "out"

    def report(
        self, name: str, policy: str, passed: Sequence[bool], *, data: str = "",
        metrics: Mapping[str, float] | None = None, **more: Any,
    ) -> Compared:  # fmt: skip
        """An evaluation's report, one row for each outcome of a check; read as a comparison reads it."""
        completions = [
            {"row": row, "prompt": f"prompt {row}", "completion": f"{name} {row}", "completion_ids": [row, 1, 2],
             "truncated": False, "passed": one, "check": {"kind": "words"}}
            for row, one in enumerate(passed)
        ]  # fmt: skip
        return self.report_of(name, policy, completions, data=data, metrics=metrics, **more)

    def report_of(
        self, name: str, policy: str, completions: Sequence[Mapping[str, Any]], *, data: str = "",
        metrics: Mapping[str, float] | None = None, reference: str | None = None, against: str | None = None,
        reward: str | None = None, seed: int = 0, **fields: Any,
    ) -> Compared:  # fmt: skip
        given = {"policy": policy, "data": data, "reference": reference, "against": against, "reward": reward}
        inputs = {field: key for field, key in given.items() if key}
        passed = [one["passed"] for one in completions if "passed" in one]
        found = {"eval/length_mean": 3.0, **(metrics or {})}
        found |= {"eval/check_rate": sum(passed) / len(passed)} if passed else {}
        report = {"policy": policy, "metrics": found, "by_kind": {}, "against": against, "reward": reward}
        files = {
            "report.json": json.dumps(report),
            "completions.jsonl": "".join(json.dumps(one) + "\n" for one in completions),
        }
        key = self.made("evaluate", "report", inputs=inputs, fields=fields, seed=seed, files=files)
        return Compared.read(name, self.folder("evaluate", key))
