"""A judge that speaks the OpenAI API over real HTTP, and answers as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUESTION = "{prompt}|{first}|{second}"
"""Short enough to take apart again."""


@dataclass
class Reply:
    """Anything but a well-formed answer."""

    status: int
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


Rule = Callable[[str, str, str], str | Reply]
"""From prompt, first and second completion to what is answered."""


def completion(text: Any, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return {"id": "1", "object": "chat.completion", "model": "judge-1", "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}  # fmt: skip


class JudgeServer:
    """On a port of its own; remembers every request."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge._lock:
                    judge.bodies.append({**body, "path": self.path})
                    judge.headers.append(dict(self.headers))
                    judge._at_once += 1
                    judge.most_at_once = max(judge.most_at_once, judge._at_once)
                reply = judge.reply(body)
                with judge._lock:
                    judge._at_once -= 1
                data = reply.body.encode()
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *about: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, body: dict[str, Any]) -> Reply:
        said = self.rule(*body["messages"][0]["content"].split("|"))
        return said if isinstance(said, Reply) else Reply(200, json.dumps(completion(said)))

    @property
    def asked(self) -> list[str]:
        """The questions, in the order in which they came."""
        return [body["messages"][0]["content"] for body in self.bodies]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def longer(prompt: str, first: str, second: str) -> str:
    """Prefers the longer completion, wherever it stands."""
    return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"


def the_first(prompt: str, first: str, second: str) -> str:
    return "A"
