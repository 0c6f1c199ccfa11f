"""Prefect's server, as `align up` starts it: it answers its own pages and programs, and no page of somebody else's.

Whoever can call its API can run code on this machine. A browser sends what any page asks for, and Prefect's own guards
let some of it through: CORS and CSRF tokens are not asked of websockets, by which events come that start flow runs, and
a name that leads to this machine by deceit (DNS rebinding) makes a strange page one of ours.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.servers.state import ORIGINS


class OwnPages:
    """ASGI middleware that refuses what another page asks for, with 403: requests and websockets alike.

    Browsers say which page asks, in `Origin`, for all but what can neither change nor read anything. Programs say none.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app, self.origins = app, frozenset(one.lower().rstrip("/") for one in origins)
        self.names = {urlsplit(one).hostname for one in self.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be asked."""
        if scope["type"] in ("http", "websocket") and (wrong := self._wrong(Headers(scope=scope))) is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": wrong[:120]})
            else:
                await JSONResponse({"detail": wrong}, status_code=403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _wrong(self, headers: Headers) -> str | None:
        origin, host = headers.get("origin"), urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if origin is not None and origin.lower() not in self.origins:
            return f"not for pages of {origin}; {ORIGINS} names others for `align up`"
        if host not in self.names and not _is_address(host):
            return f"not by the name {host!r}; {ORIGINS} names others for `align up`"
        return None


def _is_address(host: str) -> bool:
    """Which no deceit makes of a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def main() -> None:
    """Prefect's own command, whose server is guarded."""
    from prefect.cli import app
    from prefect.server.api import server

    unguarded = server.create_app

    def create_app(*given: Any, **words: Any) -> Any:
        made = unguarded(*given, **words)
        origins = [one for one in os.environ.get(ORIGINS, "").split(",") if one]
        return OwnPages(made, origins) if words.get("final") else made  # the others are for calls within the server

    server.create_app = create_app
    app()


if __name__ == "__main__":
    main()
