"""No password of a URL is shown, whatever quotes it."""

from __future__ import annotations

import os

import pytest

from flows.addresses import past_proxies, without_secrets
from flows.home import prepare_services
from flows.links import mlflow_page
from flows.tracking.mlflow_server import MlflowServer

PASSWORD = "hunter2-of-the-server"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"http://me:{PASSWORD}@host:5000/api", "http://host:5000/api"),
        (f"postgresql+psycopg2://me:{PASSWORD}@host/db", "postgresql+psycopg2://host/db"),
        (f"at 'https://me:{PASSWORD}@with@at@host/x', and http://b@c", "at 'https://host/x', and http://c"),
        (f"postgresql://host/db?user=me&password={PASSWORD}&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        (f"https://bucket/x?X-Amz-Security-Token={PASSWORD}", "https://bucket/x?X-Amz-Security-Token=***"),
        (f"http://me:{PASSWORD}'s@host:5000", "http://host:5000"),
        (f"https://a/x?X-Amz-Signature={PASSWORD}&b=1", "https://a/x?X-Amz-Signature=***&b=1"),
        (f"https://a/x?sig={PASSWORD}&design=1", "https://a/x?sig=***&design=1"),
        ("http://host/path/@me and a@b.example", "http://host/path/@me and a@b.example"),
        ("http://127.0.0.1:5000/#/compare-runs?runs=[%22a%22]", "http://127.0.0.1:5000/#/compare-runs?runs=[%22a%22]"),
    ],
)
def test_without_secrets(said: str, shown: str):
    assert without_secrets(said) == shown


def test_a_server_that_does_not_answer_is_named_without_its_password(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:9")
    with pytest.raises(Exception, match=r"MLflow at http://127.0.0.1:9 can't be used") as caught:
        MlflowServer.reach(home, "one")
    assert PASSWORD not in str(caught.value)
    assert mlflow_page("abc") == "http://127.0.0.1:9/#/runs/abc"


def test_links_to_prefects_pages_hold_no_password(home, monkeypatch):
    monkeypatch.setattr(os, "environ", {"PREFECT_API_URL": f"http://me:{PASSWORD}@host:4200/api"})
    prepare_services(home)
    assert os.environ["PREFECT_UI_URL"] == "http://host:4200"


def test_what_is_on_this_machine_is_asked_past_the_users_proxy():
    """Whichever of the two spellings there is, and whichever a library reads."""
    assert past_proxies({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "127.0.0.1") == {}
    assert past_proxies({}, "127.0.0.1") == past_proxies({"HTTP_PROXY": ""}, "127.0.0.1") == {}
    for name in ("NO_PROXY", "no_proxy"):
        found = past_proxies(
            {"https_proxy": "http://proxy:3128", name: "localhost, .example.org"}, "127.0.0.1", "localhost"
        )
        assert found == dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,.example.org,127.0.0.1")


def test_prefects_client_asks_a_server_of_this_machine_past_the_proxy(home, monkeypatch):
    from httpx._utils import get_environment_proxies

    monkeypatch.setattr(os, "environ", {"HTTP_PROXY": "http://proxy:3128"})
    prepare_services(home)
    assert get_environment_proxies()["all://127.0.0.1"] is None
