"""A judge behind an OpenAI-compatible endpoint: one question, one answer, with patience for what passes.

Of the API only chat completions are used: `POST <url>/chat/completions`, with one user message. What passes (no
connection, 408, 409, 425, 429, 5xx) is tried again; 401, 402, 404 and redirects end the stage; any other refusal is
that question's alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPException
from threading import Event
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from artifacts.errors import StageError
from tasks.judging.answers import Answer
from tasks.judging.pairs import choice_in

TIMEOUT_S = 120.0
DELAYS_S = (1.0, 2.0, 4.0, 8.0)
"""Between two tries of a question, unless the endpoint says how long."""
LONGEST_DELAY_S = 60.0
LONGEST_REPLY = 1 << 22
"""Bytes that are read of a reply."""
PASSING = {408, 409, 425, 429}
HOPELESS = {401, 402, 404}
SECRET = 8
"""Characters from which on a key is taken out of what the endpoint says; shorter ones are placeholders."""


class Unanswered(Exception):  # noqa: N818  (a fact about one question)
    """A question got no answer: what was said instead."""


class Passing(Exception):  # noqa: N818
    """It may work the next time; `status` is None where nobody answered at all."""

    def __init__(self, said: str, status: int | None = None, after: float | None = None) -> None:
        super().__init__(said)
        self.status, self.after = status, after


class NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to somewhere else."""

    def redirect_request(self, *about: Any) -> None:
        return None


class Endpoint:
    """Where a judge answers, and as whom it is asked."""

    def __init__(self, url: str, key_name: str, request: Mapping[str, Any]) -> None:
        self.url = f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        self.key_name, self.key = key_name, os.environ.get(key_name, "").strip()
        if re.search(r"[^!-~]", self.key):
            raise StageError(f"${key_name} holds a blank or a character that no API key has; set it anew")
        self.request = dict(request)
        self.halted = Event()
        """Ends all waiting."""
        self._opener = build_opener(NoRedirect)

    def ask(self, question: str) -> Answer:
        """The answer; raises Unanswered when patience is at its end, StageError for what no patience helps."""
        for delay in (*DELAYS_S, None):
            try:
                return self.ask_once(question)
            except Passing as problem:
                after = delay if problem.after is None else min(problem.after, LONGEST_DELAY_S)
                if delay is None or self.halted.wait(after):
                    raise Unanswered(str(problem)) from None
        raise AssertionError("the last try ends the loop")

    def ask_once(self, question: str) -> Answer:
        """One try; raises Passing too."""
        body = {**self.request, "messages": [{"role": "user", "content": question}]}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(self.url, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as reply:
                return answer_in(self._shown(reply.read(LONGEST_REPLY)))
        except HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, HTTPException, UnicodeError) as error:  # refused, reset, cut short, timed out, no such host
            reason = getattr(error, "reason", error)
            raise Passing(f"no answer from {self.url} ({reason or type(reason).__name__})") from None

    def _refusal(self, error: HTTPError) -> Exception:
        """What an HTTP status other than 200 comes to."""
        try:
            body = self._shown(error.read(LONGEST_REPLY))
        except (OSError, HTTPException):
            body = ""
        said = f"{self.url} says {error.code}: {' '.join(body.split())[:300] or error.reason}"
        if error.code in PASSING or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            return Passing(said, error.code, float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None)
        if error.code in HOPELESS or error.code < 400:
            hint = f"; the key is read from ${self.key_name}, which is {'set' if self.key else 'not set'}"
            return StageError(f"the judge can't be asked: {said}{hint if error.code == 401 else ''}")
        return Unanswered(said)

    def _shown(self, reply: bytes) -> str:
        """A reply as text that may be kept: servers like to repeat the key that they don't accept."""
        text = reply.decode(errors="replace")
        return text.replace(self.key, f"${self.key_name}") if len(self.key) >= SECRET else text


def answer_in(reply: str) -> Answer:
    """The answer in a chat completion; a reply that is none, and an answer that was cut off, are nonsense."""
    try:
        said = json.loads(reply)
        chosen = said["choices"][0]
        text = chosen["message"]["content"]
        cut = chosen.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Answer(reply[:2000], None)
    model, usage = said.get("model"), said.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    about = (_writable(model) if isinstance(model, str) else None, tokens if isinstance(tokens, int) else None)
    if not isinstance(text, str):
        return Answer(f"no text: {json.dumps(text)[:2000]}", None, *about)
    return Answer(_writable(text) + " [cut off]" * cut, None if cut else choice_in(text), *about)


def _writable(text: str) -> str:
    """JSON can spell halves of characters, which no file takes."""
    return text.encode(errors="replace").decode()
