from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import DataError
from tasks.row_files import most_rows
from tasks.rows import Row, read_rows

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Name a colour, please"},
    {"role": "assistant", "content": "Red"},
]
CHECK = {"kind": "max_words", "n": 3}


def write(folder: Path, suffix: str, rows: Sequence[Mapping[str, Any]]) -> str:
    path = folder / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("raw", "form", "wanted"),
    [
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, "demonstrations",
         {"instruction": "Add", "input": "1, 2", "completion": "3"}),
        ({"instruction": "Add", "input": "", "output": "3"}, "demonstrations",
         {"instruction": "Add", "completion": "3"}),
        ({"prompt": "Say é, \"ü\"\nnow", "completion": "é"}, "demonstrations",
         {"instruction": "Say é, \"ü\"\nnow", "completion": "é"}),
        ({"prompt": TALK[:1] + TALK[1:2], "completion": [TALK[2]]}, "demonstrations",
         {"history": (("system", "Be brief."),), "instruction": "Hello", "completion": "Hi!"}),
        ({"messages": TALK[1:3]}, "demonstrations", {"instruction": "Hello", "completion": "Hi!"}),
        ({"messages": TALK}, "demonstrations",
         {"history": (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!")),
          "instruction": "Name a colour, please", "completion": "Red"}),
        ({"prompt": "Hello", "chosen": "Hi!", "rejected": "[no]", "check": CHECK}, "preferences",
         {"instruction": "Hello", "chosen": "Hi!", "rejected": "[no]", "check": CHECK}),
        ({"prompt": TALK[1:4], "chosen": TALK[4:], "rejected": [{"role": "assistant", "content": "No"}]}, "preferences",
         {"history": (("user", "Hello"), ("assistant", "Hi!")), "instruction": "Name a colour, please",
          "chosen": "Red", "rejected": "No"}),
        ({"prompt": "Hello", "chosen": TALK[1:3], "rejected": [TALK[1], {"role": "assistant", "content": "No"}]},
         "preferences", {"instruction": "Hello", "chosen": "Hi!", "rejected": "No"}),
        ({"messages": TALK[1:3], "label": False}, "feedback",
         {"instruction": "Hello", "completion": "Hi!", "label": False}),
        ({"instruction": "Add", "input": "1, 2", "output": "3", "label": "True"}, "feedback",
         {"instruction": "Add", "input": "1, 2", "completion": "3", "label": True}),
    ],
    ids=["alpaca", "alpaca without input", "prompt and completion", "prompt as messages", "messages",
         "several turns with a system prompt", "pairs with a check", "pairs as messages",
         "pairs that repeat the prompt", "disliked messages", "a label as text"],
)  # fmt: skip
def test_every_form_reads_the_same_from_every_kind_of_file(
    tmp_path: Path, suffix: str, raw: dict[str, Any], form: Any, wanted: dict[str, Any]
) -> None:
    assert read_rows(write(tmp_path, suffix, [raw]), form) == [Row(row=1, **wanted)]


def test_a_pair_is_two_rows_of_feedback_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path, ".jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r", "check": CHECK}])
    assert read_rows(source, "feedback", split_pairs=True) == [
        Row(row=1, instruction="p", completion="c", label=True, check=CHECK),
        Row(row=1, instruction="p", completion="r", label=False, check=CHECK),
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_check_is_a_rows_own_business_in_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "check": CHECK},
        {"prompt": "c", "completion": "d", "check": {"kind": "lowercase"}},
        {"prompt": "e", "completion": "f", "check": {"kind": "contains", "words": ["x", "y"]}},
    ]
    found = read_rows(write(tmp_path, suffix, rows), "demonstrations")
    assert [row.check for row in found] == [row["check"] for row in rows]


def test_what_a_spreadsheet_writes_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.CSV"
    path.write_bytes('\ufeffprompt,completion\r\n"a, b",c\r\n'.encode())
    assert read_rows(str(path), "demonstrations") == [Row(row=1, instruction="a, b", completion="c")]


def test_a_long_text_in_a_csv_is_no_error(tmp_path: Path) -> None:
    text = "x" * 200_000
    source = write(tmp_path, ".csv", [{"prompt": "a", "completion": text}])
    assert read_rows(source, "demonstrations")[0].completion == text


GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("raw", "form", "message"),
    [
        ({"prompt": "p", "chosen": "c"}, "preferences", "field 'rejected' is missing"),
        ({"prompt": "p", "completion": "c"}, "preferences", "field 'chosen' is missing; pairs need prompt, chosen"),
        ({"prompt": "p"}, "demonstrations", "field 'completion' is missing"),
        ({"instruction": "i"}, "demonstrations", "field 'output' is missing"),
        ({"instruction": "i", "input": 3, "output": "o"}, "demonstrations", "field 'input': wanted text, got int"),
        (GOOD, "demonstrations", "has 'chosen': these are pairs; set `form: preferences`"),
        ({"question": "q", "answer": "a"}, "demonstrations", "wanted the fields instruction/input/output, "
         "prompt/completion or messages, got question, answer"),
        ({"prompt": "p", "completion": " \n"}, "demonstrations", "field 'completion' is empty"),
        ({"prompt": "p", "completion": None}, "demonstrations", "field 'completion': wanted text, got nothing"),
        ({"prompt": 5, "completion": "c"}, "demonstrations", "field 'prompt': wanted text, got int"),
        ({**GOOD, "rejected": "c "}, "preferences", "fields 'chosen' and 'rejected' are identical"),
        ({**GOOD, "check": {"kind": "max_word", "n": 2}}, "preferences", "field 'check': 'kind' must be one of"),
        ({**GOOD, "check": {"kind": "max_words", "n": 0}}, "preferences", "field 'check': 'n' of a max_words check"),
        ({**GOOD, "check": "short"}, "preferences", "field 'check': a check must be a mapping"),
        ({**GOOD, "check": {}}, "preferences", "field 'check': 'kind' must be one of"),
        ({"messages": []}, "demonstrations", "field 'messages': wanted a list of messages, got []"),
        ({"messages": TALK[:2]}, "demonstrations", "field 'messages': wanted the assistant's turn last, got 'user'"),
        ({"messages": [TALK[0], TALK[2]]}, "demonstrations", "field 'messages': wanted a user's turn before"),
        ({"messages": [{"role": "gpt", "content": "x"}]}, "demonstrations", "field 'messages', message 1: wanted role"),
        ({"messages": [TALK[1], {"role": "assistant", "content": ""}]}, "demonstrations",
         "field 'messages', message 2: its content is empty"),
        ({**GOOD, "chosen": TALK[1:2]}, "preferences", "field 'chosen': wanted the assistant's turn last, got 'user'"),
        ({**GOOD, "chosen": TALK[1:3]}, "preferences", "field 'chosen': the turns before its last are not those of"),
        ({"prompt": "p", "completion": "half \ud800"}, "demonstrations", "field 'completion': not valid Unicode"),
        ({"messages": [TALK[1], {"role": "assistant", "content": "\udc00"}]}, "demonstrations", "not valid Unicode"),
        ({"prompt": "p", "completion": "c"}, "feedback", "field 'label' is missing; feedback needs true (desirable)"),
        ({"prompt": "p", "completion": "c", "label": "good"}, "feedback", "'label': wanted true or false, got 'good'"),
        ({"prompt": "p", "completion": "c", "label": None}, "feedback", "'label': wanted true or false, got None"),
        (GOOD, "feedback", "has 'chosen': these are pairs; set `split_pairs: true`"),
        ("text", "demonstrations", "wanted an object with fields, got str"),
        (["a"], "demonstrations", "wanted an object with fields, got list"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_number_and_field(tmp_path: Path, raw: Any, form: Any, message: str) -> None:
    good = GOOD if form == "preferences" else {"prompt": "p", "completion": "c", "label": True}
    (tmp_path / "mine.json").write_text(json.dumps([good, raw, good]))
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "mine.json"), form)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("mine.json: row 2: ")
    assert message in line


def test_the_first_ten_bad_rows_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    source = write(tmp_path, ".jsonl", [{"prompt": "p", "completion": ""}] * 14)
    with pytest.raises(DataError) as caught:
        read_rows(source, "demonstrations")
    lines = str(caught.value).splitlines()
    assert lines[9].startswith("rows.jsonl: row 10: ")
    assert lines[10:] == ["... and 4 more rows with problems"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"", "rows.json: wanted rows, got none"),
        ("rows.json", b"[]", "rows.json: wanted rows, got none"),
        ("rows.jsonl", b"\n\n", "rows.jsonl: wanted rows, got none"),
        ("rows.csv", b"prompt,completion\n", "rows.csv: wanted rows, got none"),
        ("rows.json", b'{"prompt": 1}', "rows.json: wanted a list of rows, got dict"),
        ("rows.json", b'{"a": 1}\n{"a": 2}', "rows.json: not valid JSON .* name it .jsonl"),
        ("rows.json", b"[" * 100_000, "rows.json: not valid JSON"),
        ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": ', "rows.jsonl: line 2 is not valid JSON"),
        ("rows.parquet", b"no parquet", "rows.parquet: not a Parquet file"),
        ("rows.txt", b"hello", r"rows.txt: wanted a file that ends with .json, .jsonl, .csv, .parquet, got .txt"),
        ("rows", b"hello", "rows: wanted a file that ends with .*, got none"),
        ("rows.jsonl", '{"prompt": "café"}'.encode("latin-1"), "rows.jsonl: not UTF-8 text"),
        ("rows.csv", b"prompt,completion\na,b,c\n", "rows.csv: row 1: has 1 more cells than there are columns"),
        ("rows.csv", b"prompt,completion\na\n", "rows.csv: row 1: field 'completion': wanted text, got nothing"),
    ],
)
def test_a_file_that_holds_no_rows(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(str(tmp_path / name), "demonstrations")


def test_neither_is_a_broken_parquet_file_counted(tmp_path: Path) -> None:
    """As a plan does, before anything is read."""
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"rows\.parquet: not a Parquet file"):
        most_rows(path)
