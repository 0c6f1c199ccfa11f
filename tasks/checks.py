"""Constraints on a completion that a program can decide.

A check is a JSON mapping: its `kind`, and the one field which that kind needs, if any:
`{"kind": "max_words", "n": 12}`. Checks look at form only. An empty completion passes none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a kind asks for, the field that holds its argument (None: no argument), and its test."""

    meaning: str
    field: str | None
    test: Callable[[str, Any], bool]


def words(text: str) -> list[str]:
    """The pieces between white space that hold a letter or a digit: a dash or a bullet is no word."""
    return [piece for piece in text.split() if any(character.isalnum() for character in piece)]


def sentences(text: str) -> list[str]:
    """Split after `.`, `!` or `?`, and a closing quote or bracket, where white space or the end follows."""
    pieces = re.split(r"(?<=[.!?])[\"')\]]*(?:\s+|$)", text)
    return [piece for piece in pieces if words(piece)]


def _has_word(text: str, wanted: str) -> bool:
    """Whole words, whatever their case; a single character counts wherever it stands."""
    if len(wanted) == 1:
        return wanted.lower() in text.lower()
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text, re.IGNORECASE) is not None


def _exact_sentences(text: str, n: int) -> bool:
    # A completion that was cut off in its last sentence must not pass.
    return len(sentences(text)) == n and text.rstrip("\"')]").endswith((".", "!", "?"))


def _bullets(text: str, n: int) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) == n and all(re.match(r"[-*•]\s+\S", line) for line in lines)


def _json_keys(text: str, keys: list[str]) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or set(value) != set(keys):
        return False
    return all(isinstance(item, str) and item.strip() for item in value.values())


KINDS: dict[str, Kind] = {
    "max_words": Kind("at most n words", "n", lambda text, n: 1 <= len(words(text)) <= n),
    "exact_words": Kind("exactly n words", "n", lambda text, n: len(words(text)) == n),
    "exact_sentences": Kind("exactly n sentences, each of them ended", "n", _exact_sentences),
    "bullets": Kind("n lines, each a bullet, and nothing else", "n", _bullets),
    "lowercase": Kind("letters, and no capital", None, lambda text, _: text.islower()),
    "uppercase": Kind("letters, all of them capitals", None, lambda text, _: text.isupper()),
    "question": Kind("a question mark at the end", None, lambda text, _: text.endswith("?")),
    "starts_with": Kind("this text first", "text", lambda text, start: text.startswith(start)),
    "ends_with": Kind("this text last", "text", lambda text, end: text.endswith(end)),
    "contains": Kind(
        "each of these words", "words", lambda text, wanted: all(_has_word(text, word) for word in wanted)
    ),
    "excludes": Kind(
        "none of these words", "words", lambda text, banned: not any(_has_word(text, word) for word in banned)
    ),
    "json_keys": Kind("a JSON object with these keys only, each with some text", "keys", _json_keys),
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_text(item) for item in value)


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "n": (_is_count, "a whole number of at least 1"),
    "text": (_is_text, "some text"),
    "words": (_is_texts, "a list of one or more words"),
    "keys": (_is_texts, "a list of one or more keys"),
}


def validate(check: object) -> str | None:
    """None if `check` is well formed, else a sentence that says what was wanted and what was got."""
    if not isinstance(check, Mapping):
        return f"a check must be a mapping such as {{'kind': 'max_words', 'n': 12}}, got {check!r}"
    name = check.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        close = get_close_matches(str(name), KINDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"'kind' must be one of {', '.join(KINDS)}, got {name!r}{hint}"
    field = KINDS[name].field
    wanted = {"kind"} if field is None else {"kind", field}
    if set(check) != wanted:
        return f"a {name} check has the fields {sorted(wanted)}, got {sorted(map(str, check))}"
    if field is not None:
        is_valid, meaning = _FIELDS[field]
        if not is_valid(check[field]):
            return f"{field!r} of a {name} check must be {meaning}, got {check[field]!r}"
    return None


def passes(check: Mapping[str, Any], completion: str) -> bool:
    """Whether `completion`, without the white space around it, obeys `check`.

    Raises:
        ValueError: the check is malformed.
    """
    problem = validate(check)
    if problem is not None:
        raise ValueError(problem)
    kind = KINDS[check["kind"]]
    text = completion.strip()
    return text != "" and kind.test(text, check[kind.field] if kind.field else None)
