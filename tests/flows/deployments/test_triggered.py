"""A flow run that a deployment started is held to what its worker allows; one that the user started is free."""

from __future__ import annotations

import subprocess
import sys

import pytest

from artifacts.errors import RecipeError
from artifacts.store import Store
from flows.commands.planning import Wanted, plan_of
from tests.conftest import ROOT, chain


@pytest.fixture
def triggered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Prefect itself offers for tests, in place of a server's answer."""
    import prefect.runtime  # noqa: F401

    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "8b1c4a5e-0000-4000-8000-000000000000")


@pytest.mark.usefixtures("triggered")
def test_a_triggered_run_reads_nothing_outside_the_roots(store: Store, write_recipe, monkeypatch):
    path = write_recipe(chain())
    with pytest.raises(RecipeError, match=r"recipe: wanted something in .*/pipelines, got"):
        plan_of(Wanted(path), store)
    monkeypatch.setenv("ALIGN_DATA_ROOTS", str(path.parent))
    assert plan_of(Wanted(path), store).stages
    with pytest.raises(RecipeError, match=r"rows.source: wanted something in .*, got '/etc/passwd'"):
        plan_of(Wanted(path, {"rows.source": "/etc/passwd"}), store)
    with pytest.raises(RecipeError, match=r"rows@.*: wanted something in .*, got '/etc/passwd'"):
        plan_of(Wanted(path, sweep={"rows.source": ["rows.jsonl", "/etc/passwd"]}), store)


def test_what_the_user_types_may_be_anywhere(store: Store, write_recipe):
    assert plan_of(Wanted(write_recipe(chain())), store).stages


def test_a_plan_on_the_command_line_does_not_wait_for_prefect(home, write_recipe):
    code = "import sys; from flows.cli import main; main(sys.argv[1:]); sys.exit('prefect' in sys.modules)"
    words = [sys.executable, "-c", code, "plan", str(write_recipe(chain()))]
    assert subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
