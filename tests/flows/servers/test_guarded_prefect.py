"""Who may ask the Prefect server of `align up`: its own pages and programs, by names that are this machine's."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from flows.servers import asking
from flows.servers.guarded_prefect import OwnPages
from flows.servers.passwords import prefect_password


async def answers(request: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def hears(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("here")
    await socket.close()


OWN = ["http://127.0.0.1:4207", "http://localhost:4207", "http://box.corp:4207"]
APP = OwnPages(Starlette(routes=[Route("/", answers, methods=["GET", "POST"]), WebSocketRoute("/ws", hears)]), OWN)
ASKED = [
    ({"host": "localhost:4207"}, True),
    ({"host": "LOCALHOST"}, True),
    ({"host": "[::1]:4207"}, True),
    ({"host": "10.0.0.7:80"}, True),
    ({"host": "localhost:4207", "origin": "http://localhost:4207"}, True),
    ({"host": "10.0.0.7:4207", "origin": "http://Box.Corp:4207"}, True),
    ({"host": "localhost:4207", "origin": "http://localhost:4208"}, False),
    ({"host": "localhost:4207", "origin": "https://elsewhere.example"}, False),
    ({"host": "localhost:4207", "origin": "null"}, False),
    ({"host": "elsewhere.example:4207"}, False),
    ({"host": "elsewhere.example:4207", "origin": "http://elsewhere.example:4207"}, False),
    ({"host": ""}, False),
]


@pytest.mark.parametrize(("headers", "answered"), ASKED)
def test_requests_and_websockets_are_for_its_own_pages_and_for_programs(
    headers: dict[str, str], answered: bool
) -> None:
    client = TestClient(APP)
    for method in ("GET", "POST", "OPTIONS"):
        status = client.request(method, "/", headers=headers).status_code
        assert (status == 403) is not answered
    if answered:
        with client.websocket_connect("/ws", headers=headers) as socket:
            assert socket.receive_text() == "here"
    else:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
            pass


def test_what_is_refused_says_what_to_do() -> None:
    said = TestClient(APP).post("/", headers={"host": "localhost", "origin": "http://a.example"}).json()["detail"]
    assert said.startswith("not for pages of http://a.example; PREFECT_SERVER_CORS_ALLOWED_ORIGINS names others")


def test_who_calls_it_by_another_name_is_not_told_to_see_to_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ask", lambda url, *given, **more: (403, ""))
    trouble = asking.prefect_trouble("http://box.local:4200")
    assert trouble == asking.Trouble.NAME
    assert "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" in asking.do_about(trouble, prefect_password())
