"""Reading rows, whatever their form, into one: a conversation that ends with the user, and what follows it.

Forms that are understood, by their columns:

    instruction, input (may be empty), output      the Alpaca form
    prompt, completion
    messages: [{role, content}, ...]               the last one is the assistant's completion
    prompt, chosen, rejected                       prompt may be text or messages, the others too

A row may also carry `check`, a rule that a program can verify (see `tasks/checks.py`). Every row is looked at, and
every problem names file, row (the first is 1) and field.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from artifacts.errors import DataError
from tasks.checks import validate
from tasks.sources import split_hub

Form = Literal["demonstrations", "preferences"]
SHOWN_PROBLEMS = 10
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class Row(BaseModel):
    """One row in the normalised form; for preferences `completion` is empty and the pair is set."""

    model_config = ConfigDict(frozen=True)
    row: int
    history: tuple[tuple[str, str], ...] = ()
    """(role, content) of what came before the last user turn."""
    instruction: str
    input: str = ""
    completion: str = ""
    chosen: str = ""
    rejected: str = ""
    check: dict[str, Any] | None = None

    @property
    def prompt(self) -> str:
        """The last user turn as one text."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def conversation(self) -> tuple[Any, ...]:
        """What identifies the prompt, with all that came before it."""
        return (*self.history, self.prompt)

    @property
    def content(self) -> tuple[Any, ...]:
        """What identifies the row; its number does not."""
        return (*self.conversation, self.completion, self.chosen, self.rejected)


class RowError(Exception):
    """A field of the current row, and what is wrong with it."""


def read_rows(source: str, form: Form) -> list[Row]:
    """Every row of a file or a hub data set; raises DataError with all the problems found (the first ten shown)."""
    where = source if source.startswith("hub:") else Path(source).name
    rows, problems = [], []
    for number, raw in enumerate(_raw_rows(source), start=1):
        try:
            rows.append(_row(raw, number, form))
        except RowError as error:
            problems.append(f"{where}: row {number}: {error}")
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"... and {more} more rows with problems"] if more > 0 else [])
        raise DataError("\n".join(shown))
    if not rows:
        raise DataError(f"{where}: wanted rows, got an empty file")
    return rows


def _raw_rows(source: str) -> Iterator[Any]:
    if source.startswith("hub:"):
        yield from _hub_rows(source)
        return
    path = Path(source)
    reader = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(path.suffix)
    if reader is None:
        raise DataError(f"{path.name}: wanted a file that ends with {', '.join(SUFFIXES)}, got {path.suffix or 'none'}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8 text ({error})") from error


def _json(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.name}: not valid JSON ({error}); for one object a line, name it .jsonl") from error
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: wanted a list of rows, got {type(rows).__name__}")
    yield from rows


def _jsonl(path: Path) -> Iterator[Any]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path.name}: line {number} is not valid JSON ({error})") from error


def _csv(path: Path) -> Iterator[Any]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {name: _from_cell(name, value) for name, value in row.items() if name is not None}


def _from_cell(name: str, value: str | None) -> Any:
    """CSV has only text; messages and checks are JSON in it."""
    if name in ("messages", "check") and value:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name}: not a Parquet file ({error})") from error


def _hub_rows(source: str) -> Iterator[Any]:
    from datasets import load_dataset

    identity, commit = split_hub(source)
    yield from load_dataset(identity, revision=commit, split="train")


def _row(raw: Any, number: int, form: Form) -> Row:
    if not isinstance(raw, dict):
        raise RowError(f"wanted an object with fields, got {type(raw).__name__}")
    check = raw.get("check") or None
    if check is not None and (wrong := validate(check) if isinstance(check, dict) else "wanted a mapping"):
        raise RowError(f"field 'check': {wrong}")
    fields = _preference(raw) if form == "preferences" else _demonstration(raw)
    return Row(row=number, check=check, **fields)


def _demonstration(raw: dict[str, Any]) -> dict[str, Any]:
    if "messages" in raw:
        messages = _messages(raw["messages"], "messages")
        if messages[-1][0] != "assistant":
            raise RowError(f"field 'messages': wanted the assistant's turn last, got {messages[-1][0]!r}")
        return {**_prompt(messages[:-1], "messages"), "completion": messages[-1][1]}
    if "instruction" in raw:
        given = raw.get("input") or ""
        if not isinstance(given, str):
            raise RowError(f"field 'input': wanted text, got {type(given).__name__}")
        return {"instruction": _text(raw, "instruction"), "input": given, "completion": _text(raw, "output")}
    if "chosen" in raw:
        raise RowError("has 'chosen': these are pairs; set `form: preferences`")
    if "prompt" in raw:
        return {**_prompt_field(raw), "completion": _answer(raw, "completion")}
    raise RowError(
        "wanted the fields instruction/input/output, prompt/completion or messages, "
        f"got {', '.join(map(str, raw)) or 'none'}"
    )


def _preference(raw: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in raw]
    if missing:
        raise RowError(f"field {missing[0]!r} is missing; pairs need prompt, chosen and rejected")
    fields = {**_prompt_field(raw), "chosen": _answer(raw, "chosen"), "rejected": _answer(raw, "rejected")}
    if fields["chosen"].strip() == fields["rejected"].strip():
        raise RowError("fields 'chosen' and 'rejected' are identical: the pair teaches nothing")
    return fields


def _text(raw: dict[str, Any], name: str) -> str:
    if name not in raw:
        raise RowError(f"field {name!r} is missing")
    value = raw[name]
    if not isinstance(value, str):
        raise RowError(f"field {name!r}: wanted text, got {'nothing' if value is None else type(value).__name__}")
    if not value.strip():
        raise RowError(f"field {name!r} is empty")
    return value


def _answer(raw: dict[str, Any], name: str) -> str:
    """A completion: text, or messages of which the last is the assistant's."""
    if isinstance(raw.get(name), list):
        return _messages(raw[name], name)[-1][1]
    return _text(raw, name)


def _prompt_field(raw: dict[str, Any]) -> dict[str, Any]:
    if isinstance(raw["prompt"], list):
        return _prompt(_messages(raw["prompt"], "prompt"), "prompt")
    return {"instruction": _text(raw, "prompt")}


def _prompt(messages: list[tuple[str, str]], name: str) -> dict[str, Any]:
    if not messages or messages[-1][0] != "user":
        raise RowError(f"field {name!r}: wanted a user's turn before the completion")
    return {"history": tuple(messages[:-1]), "instruction": messages[-1][1]}


def _messages(value: Any, name: str) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise RowError(f"field {name!r}: wanted a list of messages, got {value!r:.60}")
    found = []
    for position, message in enumerate(value, start=1):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise RowError(f"field {name!r}, message {position}: wanted role system, user or assistant")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise RowError(f"field {name!r}, message {position}: its content is empty")
        found.append((str(message["role"]), content))
    return found
