"""Reading rows, whatever their form, into one: a conversation that ends with the user, and what follows it.

Forms that are understood, by their columns:

    instruction, input (may be empty), output      the Alpaca form
    prompt, completion
    messages: [{role, content}, ...]               the last one is the assistant's completion
    prompt, chosen, rejected                       prompt may be text or messages, the others too
    any of the first three, and label              true for a desirable completion, false for an undesirable one

A row may also carry `check`, a rule that a program can verify (see `tasks/checks.py`). Every row is looked at, and
every problem names file, row (the first is 1) and field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from artifacts.errors import DataError
from tasks.checks import validate
from tasks.row_files import raw_rows

Form = Literal["demonstrations", "preferences", "feedback"]
SHOWN_PROBLEMS = 10
LABELS = {"true": True, "false": False, "1": True, "0": False}


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
    label: bool | None = None
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
        return (*self.conversation, self.completion, self.chosen, self.rejected, self.label)


class RowError(Exception):
    """A field of the current row, and what is wrong with it."""


def read_rows(source: str, form: Form, *, split_pairs: bool = False) -> list[Row]:
    """Every row of a file or a hub data set; raises DataError with all the problems found (the first ten shown).

    With `split_pairs` a pair becomes two rows of feedback.
    """
    where = source if source.startswith("hub:") else Path(source).name
    rows, problems = [], []
    for number, raw in enumerate(raw_rows(source), start=1):
        try:
            rows += _rows(raw, number, form, split_pairs)
        except RowError as error:
            problems.append(f"{where}: row {number}: {error}")
    if problems:
        raise DataError(shown_problems(problems))
    if not rows:
        raise DataError(f"{where}: wanted rows, got none")
    return rows


def shown_problems(problems: list[str]) -> str:
    """The first few, and how many more there are."""
    more = len(problems) - SHOWN_PROBLEMS
    return "\n".join(problems[:SHOWN_PROBLEMS] + ([f"... and {more} more rows with problems"] if more > 0 else []))


def _rows(raw: Any, number: int, form: Form, split_pairs: bool) -> list[Row]:
    if not isinstance(raw, dict):
        raise RowError(f"wanted an object with fields, got {type(raw).__name__}")
    if None in raw:
        raise RowError(f"has {len(raw[None])} more cells than there are columns; quote a text that holds a comma")
    check = _check(raw.get("check"))
    if form == "feedback" and "chosen" in raw:
        found = _split(raw, split_pairs)
    else:
        found = [{"demonstrations": _demonstration, "preferences": _preference, "feedback": _feedback}[form](raw)]
    return [Row(row=number, check=check, **fields) for fields in found]


def _split(raw: dict[str, Any], wanted: bool) -> list[dict[str, Any]]:
    """A pair as a desirable and an undesirable completion, if that was asked for."""
    if not wanted:
        raise RowError(
            "has 'chosen': these are pairs; set `split_pairs: true` to take chosen as desirable and rejected as not"
        )
    pair = _preference(raw)
    sides = {"completion": pair.pop("chosen"), "label": True}, {"completion": pair.pop("rejected"), "label": False}
    return [{**pair, **side} for side in sides]


def _feedback(raw: dict[str, Any]) -> dict[str, Any]:
    if "label" not in raw:
        raise RowError("field 'label' is missing; feedback needs true (desirable) or false with each completion")
    label = LABELS.get(str(raw["label"]).lower())
    if label is None:
        raise RowError(f"field 'label': wanted true or false, got {raw['label']!r:.40}")
    return {**_demonstration(raw), "label": label}


def _check(given: Any) -> dict[str, Any] | None:
    """Columnar files give every check the fields of all the others too, with nothing in them."""
    if given is None or given == "":
        return None
    check = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given
    if wrong := validate(check):
        raise RowError(f"field 'check': {wrong}")
    return dict(check)


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
        given = _encodable(given, "field 'input'") if given.strip() else ""
        return {"instruction": _text(raw, "instruction"), "input": given, "completion": _text(raw, "output")}
    if "chosen" in raw:
        raise RowError("has 'chosen': these are pairs; set `form: preferences`")
    if "prompt" in raw:
        prompt = _prompt_field(raw)
        return {**prompt, "completion": _answer(raw, "completion", prompt)}
    raise RowError(
        "wanted the fields instruction/input/output, prompt/completion or messages, "
        f"got {', '.join(map(str, raw)) or 'none'}"
    )


def _preference(raw: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in raw]
    if missing:
        raise RowError(f"field {missing[0]!r} is missing; pairs need prompt, chosen and rejected")
    prompt = _prompt_field(raw)
    fields = {**prompt, **{side: _answer(raw, side, prompt) for side in ("chosen", "rejected")}}
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
    return _encodable(value, f"field {name!r}")


def _encodable(text: str, where: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: not valid Unicode ({error.reason} at character {error.start + 1})") from error
    return text


def _answer(raw: dict[str, Any], name: str, prompt: dict[str, Any]) -> str:
    """A completion: text, or messages that end with the assistant's and may repeat the prompt before it."""
    if not isinstance(raw.get(name), list):
        return _text(raw, name)
    *before, (role, content) = _messages(raw[name], name)
    if role != "assistant":
        raise RowError(f"field {name!r}: wanted the assistant's turn last, got {role!r}")
    if before and before != [*prompt["history"], ("user", prompt["instruction"])]:
        raise RowError(f"field {name!r}: the turns before its last are not those of 'prompt'")
    return content


def _prompt_field(raw: dict[str, Any]) -> dict[str, Any]:
    if isinstance(raw["prompt"], list):
        return _prompt(_messages(raw["prompt"], "prompt"), "prompt")
    return {"history": (), "instruction": _text(raw, "prompt")}


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
        found.append((str(message["role"]), _encodable(content, f"field {name!r}, message {position}")))
    return found
