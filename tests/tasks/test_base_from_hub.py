"""A base that a hub has: what is said where it can't be reached, or refuses."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from artifacts.errors import ModelError, UserError
from tasks.base_model import BaseModelStage


@pytest.mark.parametrize("source", ["org/model", "Qwen/Qwen2.5-0.5B", "hub:org/model@main", "org/model@v1.0"])
def test_a_hub_id_without_a_network_fails_soon_and_says_what_to_do(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"the hub can't be reached .*; download it and give its folder") as caught:
        BaseModelStage(source=source).locate([tmp_path])
    assert time.monotonic() - started < 20
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_status == 2


class Refusing(BaseHTTPRequestHandler):
    """A hub that answers so to everything."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "token", "said"), [
    (401, "hf_expired", r"'org/model' that you may read \(status 401\); see that the token in HF_TOKEN is valid"),
    (403, "hf_narrow", r"'org/model' that you may read \(status 403\); see that the token in HF_TOKEN is valid"),
    (401, "", r"no model 'org/model' that you may read \(status 401\); if it is not for all set HF_TOKEN"),
    (404, "", r"no model 'org/model' that you may read \(status 404\); if it is not for all set HF_TOKEN"),
    (500, "", r"the hub does not answer \(status 500\) about the model 'org/model'; try again later"),
])  # fmt: skip
def test_what_the_hub_refuses_says_whether_the_token_may_be_at_fault(
    status: int, token: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "status", status)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for module in ("huggingface_hub.constants", "huggingface_hub.hf_api.constants"):
            monkeypatch.setattr(f"{module}.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ModelError, match=said) as caught:
            BaseModelStage(source="org/model").locate([tmp_path])
        server.shutdown()
    assert caught.value.exit_status == 2 and (not token or token not in str(caught.value))
