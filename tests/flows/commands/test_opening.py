"""`align open` and `compare --open`: the link in any case, the browser where there are a server and a display."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.kept_runs import keep_run, stage

ROOT = Path(__file__).parents[3]
SERVER = "http://mlflow.example:5000"


@dataclass
class Desk:
    """A command with a browser that writes down what it is given."""

    folder: Path

    @property
    def opened(self) -> str:
        seen = self.folder / "seen"
        return seen.read_text() if seen.exists() else ""

    def align(self, *words: str, **environment: str) -> tuple[int, str, str]:
        browser = self.folder / "browser"
        browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {self.folder}/seen\n')
        browser.chmod(0o755)
        dropped = ("MLFLOW_", "PREFECT_", "DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        own = {"PREFECT_HOME": str(self.folder / "prefect"), "BROWSER": str(browser), **environment}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False,
            env={name: value for name, value in {**inherited, **own}.items() if value},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def desk(home: Path, tmp_path: Path) -> Desk:
    keep_run(home, "tiny-1", [stage("sft"), stage("dpo", "failed", mlflow_run_id=None)])
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("what", "run"), [("last", "tiny-1"), ("tiny", "tiny-1"), ("last:sft", "sft"), (b"sft".hex(), "sft")]
)
def test_a_run_or_stage_is_opened_where_mlflow_shows_it(desk: Desk, what: str, run: str) -> None:
    link = f"{SERVER}/#/runs/id-of-{run}"
    assert desk.align("open", what, MLFLOW_TRACKING_URI=f"{SERVER}/") == (0, f"{link}\n", "")
    assert desk.opened == link


def test_the_link_is_the_one_that_browsers_can_follow(desk: Desk) -> None:
    """Runs in a cluster call MLflow by a name that is known there alone."""
    named = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "ALIGN_MLFLOW_PAGES": "https://mlflow.example.org/"}
    link = "https://mlflow.example.org/#/runs/id-of-tiny-1"
    assert desk.align("open", "last", **named) == (0, f"{link}\n", "")
    assert desk.opened == link


def test_without_a_server_it_says_how_to_start_one(desk: Desk) -> None:
    status, out, err = desk.align("open", "last")
    assert (status, out) == (1, "http://127.0.0.1:5000/#/runs/id-of-tiny-1\n")
    assert "`align up`" in err and not desk.opened


def test_without_a_display_the_link_is_there_to_be_copied(desk: Desk) -> None:
    status, out, err = desk.align("open", "last", MLFLOW_TRACKING_URI=SERVER, BROWSER="")
    assert (status, out) == (0, f"{SERVER}/#/runs/id-of-tiny-1\n")
    assert err.startswith("there is no display here")


def test_prefect_shows_the_flow_run(desk: Desk) -> None:
    page = "runs/flow-run/00000000-0000-0000-0000-000000000001"
    status, out, _ = desk.align("open", "last", "--prefect", PREFECT_API_URL="http://prefect.example:4200/api")
    assert (status, out) == (0, f"http://prefect.example:4200/{page}\n") and desk.opened == out.strip()


def test_what_mlflow_does_not_have_can_be_sent(desk: Desk) -> None:
    status, out, err = desk.align("open", "last:dpo")
    assert (status, out) == (2, "") and "(it is failed)" in err and "`align sync`" in err
    status, _, err = desk.align("open", "last:dop")
    assert status == 2 and "did you mean 'dpo'?" in err
