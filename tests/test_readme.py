"""Every command that the README shows exists; those that cost nothing are run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.options import parse

ROOT = Path(__file__).parent.parent
SERVERS = ("up", "down", "doctor")
README = (ROOT / "README.md").read_text()
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
