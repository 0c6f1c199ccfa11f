"""Addresses as they may be shown: a URL is quoted in many places, and some hold a password."""

from __future__ import annotations

import re

USER = re.compile(r"(?<=://)[^/\s'\"<>]*@")
QUERY = re.compile(r"([?&][^=&\s'\"]*(?:passw|pwd|token|secret|key|credential)[^=&\s'\"]*=)[^&\s'\"]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` with neither user nor password in its URLs, and no query that is called like a secret."""
    return QUERY.sub(r"\1***", USER.sub("", text))


def reason(error: BaseException) -> str:
    """The first line of what an error says, or else what it is, without secrets."""
    return without_secrets((str(error).splitlines() or [type(error).__name__])[0])[:200]
