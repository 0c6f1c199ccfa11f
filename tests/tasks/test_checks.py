from __future__ import annotations

from typing import Any

import pytest

from tasks.checks import KINDS, passes, validate

CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"kind": "max_words", "n": 3}, ["one", "one two three", "one - two\n* three", "don't well-known it's"],
     ["one two three four", "- *", "..."]),
    ({"kind": "exact_words", "n": 2}, ["one two", "  one\ttwo\n", "one — two!"], ["one", "one two three"]),
    ({"kind": "exact_sentences", "n": 2}, ["One. Two!", 'He said "no." She left.', "Is 3.5 enough? Yes.",
      "(One.) Two."], ["One.", "One. Two. Three.", "One. Two", "One. Two. Thr"]),
    ({"kind": "bullets", "n": 2}, ["- one\n- two", "* one\n\n* two\n", "• one\n- two"],
     ["- one", "- one\n- two\n- three", "Here:\n- one\n- two", "-one\n-two", "- one\n-  "]),
    ({"kind": "lowercase"}, ["all small, é", "a 1!"], ["One", "ALL", "123", "a É"]),
    ({"kind": "uppercase"}, ["ALL CAPS, É", "A 1!"], ["One", "all", "123"]),
    ({"kind": "question"}, ["Why?", "Because. Why? "], ["Why? Because.", "why", "?!"]),
    ({"kind": "starts_with", "text": "As a rule,"}, ["As a rule, no", " \nAs a rule, no"],
     ["as a rule, no", "So as a rule,"]),
    ({"kind": "ends_with", "text": "That is all."}, ["x That is all.", "That is all.\n"],
     ["That is all. Bye", "That is all"]),
    ({"kind": "contains", "words": ["cat", "dog"]}, ["A Cat, a dog.", "dog\ncat"],
     ["cat", "category dogs", "concat dog"]),
    ({"kind": "contains", "words": ["!"]}, ["Hi!"], ["Hi"]),
    ({"kind": "contains", "words": ["C++"]}, ["I like C++."], ["I like C."]),
    ({"kind": "excludes", "words": ["the", "and"]}, ["other hands", "nothing"], ["The end", "this AND that"]),
    ({"kind": "excludes", "words": ["e"]}, ["a bold scan"], ["The", "hey"]),
    ({"kind": "json_keys", "keys": ["name", "use"]}, ['{"use": "b", "name": "a"}', '\n {"name": "é", "use": "b"} '],
     ['{"name": "a"}', '{"name": "a", "use": "b", "x": "c"}', '{"name": "a", "use": ""}', '{"name": 1, "use": "b"}',
      "name use", '["name", "use"]', '```json\n{"name": "a", "use": "b"}\n```', "[" * 100_000]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "good", "bad"), CASES, ids=lambda value: value["kind"] if isinstance(value, dict) else ""
)
def test_a_completion_obeys_or_not(check: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert validate(check) is None
    assert [text for text in good if not passes(check, text)] == []
    assert [text for text in bad if passes(check, text)] == []


def test_every_kind_has_a_case() -> None:
    assert {check["kind"] for check, _, _ in CASES} == set(KINDS)


@pytest.mark.parametrize("check", [case[0] for case in CASES], ids=lambda check: check["kind"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_saying_nothing_obeys_no_rule(check: dict[str, Any], text: str) -> None:
    assert not passes(check, text)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("max_words", "a check must be a mapping"),
        (None, "a check must be a mapping"),
        ({}, "'kind' must be one of max_words, "),
        ({"kind": ["max_words"]}, "'kind' must be one of max_words, "),
        ({"kind": "max_word", "n": 3}, "did you mean 'max_words'?"),
        ({"kind": "max_words"}, "a max_words check has the fields ['kind', 'n'], got ['kind']"),
        ({"kind": "lowercase", "n": 1}, "a lowercase check has the fields ['kind'], got ['kind', 'n']"),
        ({"kind": "max_words", "n": 0}, "'n' of a max_words check must be a whole number of at least 1, got 0"),
        ({"kind": "max_words", "n": True}, "must be a whole number of at least 1, got True"),
        ({"kind": "max_words", "n": 2.0}, "must be a whole number of at least 1, got 2.0"),
        ({"kind": "contains", "words": "cat"}, "must be a list of one or more words, got 'cat'"),
        ({"kind": "contains", "words": []}, "must be a list of one or more words, got []"),
        ({"kind": "json_keys", "keys": ["a", ""]}, "must be a list of one or more keys"),
        ({"kind": "starts_with", "text": " "}, "must be some text"),
    ],
    ids=str,
)
def test_a_malformed_check_says_what_it_wants(check: Any, message: str) -> None:
    problem = validate(check)
    assert problem is not None
    assert message in problem
    with pytest.raises(ValueError, match=r"must|has"):
        passes(check, "text")
