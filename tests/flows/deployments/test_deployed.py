"""A flow run by other code than the deployment's is refused, or said, with both versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from artifacts.errors import UserError
from flows.deployments import deployed
from flows.running import stages

OTHER = "alignflow 0.0.1+000000000000"


@pytest.fixture(autouse=True)
def as_it_is_by_default(monkeypatch):
    monkeypatch.delenv(deployed.OTHER_CODE, raising=False)


def refuse_to_say(line: str) -> None:
    raise AssertionError(line)


def test_the_same_code_is_content_and_so_is_what_is_no_deployment_of_ours():
    for version in (deployed.this_code()["code_version"], None, "0f3a", "1.2"):
        deployed.check_code(version, refuse_to_say)


def test_other_code_is_refused_with_both_versions_and_what_to_do():
    with pytest.raises(UserError) as refused:
        deployed.check_code(OTHER, refuse_to_say)
    assert f"made by {OTHER}, this worker has {deployed.code_version()}" in str(refused.value)
    assert "deploy again" in str(refused.value) and "ALIGN_OTHER_CODE=warn" in str(refused.value)


def test_it_may_go_on_and_says_so(monkeypatch):
    monkeypatch.setenv(deployed.OTHER_CODE, "warn")
    lines: list[str] = []
    deployed.check_code(OTHER, lines.append)
    assert lines == [f"warning: the deployment was made by {OTHER}, this worker has {deployed.code_version()}"]
    monkeypatch.setenv(deployed.OTHER_CODE, "wran")
    with pytest.raises(UserError, match="ALIGN_OTHER_CODE: wanted refuse or warn, got 'wran'"):
        deployed.check_code(OTHER, lines.append)


def test_a_changed_line_is_another_version_and_a_copy_is_not(tmp_path: Path):
    for package in deployed.PACKAGES:
        shutil.copytree(deployed.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def version() -> str:
        code = "from flows.deployments.deployed import code_version; print(code_version())"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert version() == deployed.code_version()
    assert version().startswith(f"alignflow {metadata.version('alignflow')}+")
    with (tmp_path / "tasks" / "dpo.py").open("a") as file:
        file.write("# a word\n")
    assert version() != deployed.code_version()


def test_a_flow_of_other_code_answers_nothing(monkeypatch):
    """Not even that nothing has changed, which a retraining may say before it runs a stage."""
    monkeypatch.setattr(stages, "_deployment_version", lambda: OTHER)
    with pytest.raises(UserError, match="this worker has"):
        stages.answer(lambda: pytest.fail("it was asked"))
