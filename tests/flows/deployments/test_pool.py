"""The work pool of deploy/: whoever triggers a run there fills in its parameters, and nothing of its process."""

from __future__ import annotations

import asyncio
import json

from prefect.workers.process import ProcessJobConfiguration

from tests.conftest import ROOT


def test_a_trigger_names_neither_command_nor_environment():
    template = json.loads((ROOT / "deploy" / "pools" / "process.json").read_text())
    asked = {"command": "touch trapped", "env": {"ALIGN_ALLOW": "programs"}, "working_dir": "/"}
    made = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, asked))
    assert (made.command, made.env, made.working_dir) == (None, {}, None)
