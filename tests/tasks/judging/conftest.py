"""Reports as `evaluate` leaves them, and judges over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artifacts.jsonl import read_jsonl
from artifacts.kinds import Report
from tasks.context import Execution
from tasks.job import Job
from tasks.registry import stage_class
from tests.tasks.judging.judge_server import QUESTION, JudgeServer, Rule

Completion = tuple[str, str, dict[str, Any]]


def write_report(folder: Path, completions: Sequence[str], reward: str | None = None, **columns: Any) -> Report:
    """A report on the prompts p0, p1, ...; each of `columns` is a list with a value a row."""
    folder.mkdir()
    rows = [
        {"row": i + 1, "prompt": f"p{i}", "completion": text, **{name: values[i] for name, values in columns.items()}}
        for i, text in enumerate(completions)
    ]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report.json").write_text(json.dumps({"policy": folder.name, "reward": reward, "metrics": {}}))
    return Report(key=folder.name, path=folder)


@dataclass
class Judging:
    """A judge stage in a draft of its own, to be run as often as a test likes."""

    draft: Path
    fields: dict[str, Any]
    execution: Execution

    def job(self) -> Job:
        stage = stage_class("judge").model_validate(self.fields)
        return Job.of(stage, uses="judge", key="k" * 8, seed=0, execution=self.execution, draft=self.draft)

    def run(self) -> dict[str, float]:
        job = self.job()
        return job.stage().run(job.context(events=False))

    def verdicts(self) -> list[str]:
        return [line["verdict"] for line in read_jsonl(self.draft / "out" / "verdicts.jsonl")]


@pytest.fixture
def served() -> Iterator[Callable[[Rule], JudgeServer]]:
    servers: list[JudgeServer] = []

    def serve(rule: Rule) -> JudgeServer:
        servers.append(JudgeServer(rule))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture
def judging(tmp_path: Path) -> Callable[..., Judging]:
    """Prepares a judge of reports in `tmp_path`: by default of ten pairs, in which `report` is the longer one."""

    def prepare(server: JudgeServer | None = None, *, requests: int = 4, **fields: Any) -> Judging:
        if "report" not in fields:
            fields["report"] = write_report(tmp_path / "mine", [f"mine {i} is longer" for i in range(10)])
            fields["against"] = write_report(tmp_path / "theirs", [f"theirs {i}" for i in range(10)])
        if server is not None:
            fields = {"endpoint": server.url, "model": "judge", "question": QUESTION, **fields}
        execution = Execution(threads=1, device="cpu", requests=requests)
        return Judging(tmp_path / "draft", fields, execution)

    return prepare
