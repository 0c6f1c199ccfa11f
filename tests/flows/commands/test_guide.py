"""`--help`: every verb is there, every example is true, and none of it takes a moment."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.cli import VERBS as DONE
from flows.cli import main
from flows.commands.guide import GROUPS, VERBS
from flows.commands.options import parse

ROOT = Path(__file__).parents[3]
EXAMPLES = [command for guide in VERBS.values() for command in guide.examples]
RECIPES = [command for command in EXAMPLES if command.split()[1] in ("plan", "run")]


def test_every_verb_is_explained_once() -> None:
    assert sorted(VERBS) == sorted(DONE) == sorted(name for group in GROUPS.values() for name in group)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_has_its_examples_and_fits_a_terminal(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert 1 <= len(VERBS[verb].examples) <= 3
    assert all(f"  $ {command}\n" in out for command in VERBS[verb].examples)
    assert max(map(len, VERBS[verb].about.splitlines())) <= 80


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_example_is_understood(command: str) -> None:
    name, *words = shlex.split(command)
    assert name == "align" and parse(words).verb == words[0]


def test_every_stage_of_the_newest_run_in_an_example_is_one_of_the_quickstarts() -> None:
    stages = yaml.safe_load((ROOT / "pipelines" / "quickstart.yaml").read_text())["stages"]
    named = [label for command in EXAMPLES for label in re.findall(r"last[: ](\w+)", command)]
    assert "merge_dpo" in named and set(named) <= set(stages)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So that the weights of the shipped base are read once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("command", RECIPES)
def test_every_recipe_stage_and_field_of_an_example_is_there(
    command: str, shared_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(shared_home))
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[2:]
    if "--jobs" in words:  # which only `run` has
        at = words.index("--jobs")
        del words[at : at + 2]
    assert main(["plan", *words]) == 0


def test_help_lists_all_verbs_in_groups_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from flows.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'transformers', 'mlflow', 'prefect', 'pydantic', 'rich', 'argcomplete', 'yaml'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"
    for title, group in GROUPS.items():
        assert f"\n{title}:\n" in done.stdout
        assert all(f"\n  {name} " in done.stdout for name in group)
