"""What is served: one deployment a form, and what only retraining has of schedules, events and what collides."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import yaml

from artifacts.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def served(home: Any) -> dict[str, Any]:
    from flows.deployments.serving import deployments

    return {each.name: each for each in deployments()}


def test_retraining_has_a_flat_form_in_which_every_field_says_what_it_is(served):
    fields = served["align-retrain"]._parameter_openapi_schema.properties
    assert list(fields) == ["recipe", "model", "stage", "report", "must", "overrides", "execution"]
    assert {name: field["title"] for name, field in fields.items()} == {
        "recipe": "Recipe", "model": "Registered model", "stage": "Challenger", "report": "Report", "must": "Gate",
        "overrides": "Other settings", "execution": "How to run",
    }  # fmt: skip
    assert all(field["description"] and "default" in field and "anyOf" not in field for field in fields.values())
    assert fields["must"]["default"] == ["win_rate_low>0.5"]


def test_data_that_changed_retrains_what_the_event_names(served):
    (trigger,) = served["align-retrain"].triggers
    assert trigger.expect == {"align.data.changed"} and set(trigger.parameters) == {"recipe", "model"}
    assert [each.name for each in served.values() if each.triggers] == ["align-retrain"]


def test_what_is_due_while_another_goes_on_is_skipped_or_waits_as_is_said(served, monkeypatch):
    from flows.deployments.serving import deployments, one_at_a_time

    assert served["align-retrain"].concurrency_limit == 1
    assert served["align-retrain"].concurrency_options.collision_strategy == "CANCEL_NEW"
    monkeypatch.setenv("ALIGN_RETRAIN_OVERLAP", "queue")
    assert deployments()[-1].concurrency_options.collision_strategy == "ENQUEUE"
    monkeypatch.setenv("ALIGN_RETRAIN_OVERLAP", "never")
    with pytest.raises(UserError, match="ALIGN_RETRAIN_OVERLAP: wanted skip or queue, got 'never'"):
        one_at_a_time()


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24"])
def test_a_cron_schedule_goes_on_at_its_hour_once_a_day_when_clocks_change(day):
    """02:30 is not there on the one day, and twice on the other: it is due once on each."""
    from prefect.server.schemas.schedules import CronSchedule

    schedule = CronSchedule(cron="30 2 * * *", timezone="Europe/Rome")
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00")
    before, change, after = (
        one.astimezone(ZoneInfo("Europe/Rome")) for one in asyncio.run(schedule.get_dates(3, start))
    )
    assert [one.date() - before.date() for one in (change, after)] == [timedelta(1), timedelta(2)]
    assert [f"{one:%H:%M}" for one in (before, after)] == ["02:30", "02:30"]


def test_a_worker_has_the_same(served):
    from prefect.flows import load_flow_from_entrypoint

    described = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())["deployments"]
    ours = next(one for one in described if one["name"] == "align-retrain")
    (trigger,) = served["align-retrain"].triggers
    assert ours["triggers"][0]["expect"] == list(trigger.expect)
    assert ours["triggers"][0]["parameters"] == trigger.parameters
    assert ours["concurrency_limit"]["limit"] == served["align-retrain"].concurrency_limit
    assert load_flow_from_entrypoint(str(ROOT / ours["entrypoint"])).name == "align-retrain"


def test_what_a_finished_retraining_is_called_ends_the_watch_over_its_heartbeats(home):
    from typing import get_args

    from flows.registry.decisions import Outcome
    from flows.servers.crash_rule import crash_rule

    ends = {f"prefect.flow-run.{outcome.capitalize()}" for outcome in get_args(Outcome)}
    assert ends <= crash_rule().trigger.expect


def test_people_are_told_by_the_block_that_they_named_and_only_then(home, monkeypatch):
    from flows.servers.notifying import install_notifications, notifications, telling

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.delenv("ALIGN_NOTIFY_BLOCK", raising=False)
    install_notifications()  # or it would ask the server, and there is none
    assert telling("did not start") == []
    block = uuid4()
    for kind, action in (("slack-webhook", "send-notification"), ("webhook", "call-webhook")):
        failed, changed = notifications(kind, block)
        assert failed.trigger.expect == {f"prefect.flow-run.{end}" for end in ("Failed", "Crashed", "TimedOut")}
        assert failed.trigger.match_related.root["prefect.resource.name"] == "align*"
        assert changed.trigger.expect == {"align.champion.changed"}
        said = {(one.type, one.block_document_id) for rule in (failed, changed) for one in rule.actions}
        assert said == {(action, block)}
