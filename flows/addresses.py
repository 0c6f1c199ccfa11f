"""Addresses as they may be shown, since some hold a password, and those that are asked without a proxy."""

from __future__ import annotations

import re
from collections.abc import Mapping

USER = re.compile(r"(?<=://)[^/\s\"<>]*@")
QUERY = re.compile(
    r"([?&][^=&\s'\"]*(?:passw|pwd|token|secret|key|credential|signature|(?<=[?&])sig(?==))[^=&\s'\"]*=)[^&\s'\"]+",
    re.IGNORECASE,
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def without_secrets(text: str) -> str:
    """`text` with neither user nor password in its URLs, and no query that is called like a secret."""
    return QUERY.sub(r"\1***", USER.sub("", text))


def reason(error: BaseException) -> str:
    """The first line of what an error says, or else what it is, without secrets."""
    return without_secrets((str(error).splitlines() or [type(error).__name__])[0])[:200]


def past_proxies(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Variables by which whoever has them asks these hosts directly; none where no proxy is set."""
    if not any(value for name, value in environment.items() if name.lower() in PROXIES):
        return {}
    named = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if named.strip() == "*":  # all are; within a list it would mean nothing
        return {}
    direct = ",".join(dict.fromkeys([*filter(None, map(str.strip, named.split(","))), *hosts]))
    return {"NO_PROXY": direct, "no_proxy": direct}
