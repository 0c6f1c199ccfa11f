"""Every command that the README shows exists; those that cost nothing are run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.cli import main
from flows.commands.options import parse
from tasks.checks import KINDS

ROOT = Path(__file__).parent.parent
SERVERS = ("up", "down", "doctor")
README = (ROOT / "README.md").read_text()
QUICKSTART = yaml.safe_load((ROOT / "pipelines" / "quickstart.yaml").read_text())["stages"]
COMMANDS = [line[2:].split(" # ")[0].split(" &")[0].strip() for line in README.splitlines() if line.startswith("$ ")]


def words_after(command: str, name: str) -> list[str]:
    """The words of an `align` command, environment assignments before it dropped."""
    words = shlex.split(command)
    return words[words.index(name) + 1 :]


@pytest.mark.parametrize("command", [command for command in COMMANDS if "align " in command])
def test_each_align_command_plans(command, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    verb, *rest = words_after(command, "align")
    if verb in SERVERS:  # tests/e2e/test_up.py does what they say
        assert parse([verb, *rest]).verb == verb
        return
    assert verb in ("run", "plan", "retrain")
    assert main(["plan", *rest]) == 0


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|\$ )make ([\w-]+)", README))))
def test_each_make_target_exists(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_recipe_is_in_the_readme_and_every_file_it_names_is_there():
    named = set(re.findall(r"`((?:pipelines|tasks|flows|tests)/[\w./]+)[`:]", README))
    assert {f"pipelines/{path.name}" for path in (ROOT / "pipelines").glob("*.yaml")} <= named
    assert all((ROOT / name).exists() for name in named)


def test_every_stage_of_the_newest_run_in_the_readme_is_one_of_the_quickstarts():
    named = set(re.findall(r"`[^`\n]*\blast:(\w+)", README))
    assert named and named <= set(QUICKSTART)


def test_the_plan_in_the_readme_has_the_stages_of_the_quickstart():
    _, _, plan = README.partition("$ align plan pipelines/quickstart.yaml")
    lines = plan.partition("```")[0].splitlines()[2:]
    assert sorted(line.split()[0] for line in lines) == sorted(QUICKSTART)


def test_every_kind_of_check_is_in_the_readme():
    assert all(f"`{kind}`" in README for kind in KINDS)


def test_the_method_that_the_readme_walks_through_is_that_file():
    """All code lines of its first block stand in tasks/simpo.py, and its registry line in the registry."""
    blocks = re.findall(r"```python\n(.*?)```", README.split("**Adding a method**")[1], re.DOTALL)
    method, line = blocks[0], blocks[1]
    code = (ROOT / "tasks" / "simpo.py").read_text()
    shown = [row.split("  #")[0].strip() for row in method.splitlines() if row.strip()]
    missing = [row for row in shown if not _stands_in(row, code)]
    assert not missing
    assert line.strip() in (ROOT / "tasks" / "registry.py").read_text()


def _stands_in(row: str, code: str) -> bool:
    """But for line breaks."""
    return "".join(row.split()) in "".join(code.split())
