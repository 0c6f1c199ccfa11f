"""Text from outside, as what models wrote and what people call things, on pages of Markdown: shown, never obeyed."""

from __future__ import annotations

import re
import unicodedata
from html import escape

SIGNS = {"\\": "&#92;", "`": "&#96;", "|": "&#124;"}
"""As HTML writes them: a backslash before them is read differently from page to page."""


def inert(text: str) -> str:
    """`text` in one line, without HTML, code, links and ends of table cells."""
    shown = escape(text, quote=False)
    for sign, written in SIGNS.items():
        shown = shown.replace(sign, written)
    shown = re.sub(r"\](?=[(\[:])", "&#93;", shown)  # of a link, or of where links lead
    lines = re.split(r"\r\n|[\n\r\v\f\x85\u2028\u2029]", shown)
    return "<br>".join("".join(map(_seen, line)) for line in lines)


def in_code(text: str) -> str:
    """`text` as code, which nothing in it ends."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _seen(letter: str) -> str:
    """A control character does something to a terminal,."""
    return "\ufffd" if unicodedata.category(letter) == "Cc" and letter != "\t" else letter
