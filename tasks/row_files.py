"""Files of rows: JSON, JSON lines, CSV, Parquet, and hub data sets. What a row means is `tasks/rows.py`'s."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from artifacts.errors import DataError
from tasks.sources import split_hub

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
TEXT = "utf-8-sig"
"""UTF-8; spreadsheets put a mark first, which would else become a part of the first column's name."""
LARGEST_CELL = 1 << 27
WITHIN = r"((zip|gzip|bz2|xz|zstd|lz4)://[^:]*::)?"
"""An archive; any other chain of file systems may begin on this machine."""


def require_readable(path: Path) -> None:
    """Raise DataError for what can be seen to be no file of rows without reading it."""
    if path.is_dir():
        raise DataError(f"source: wanted a file, got the folder {path}")
    _reader(path)
    if path.stat().st_size == 0:
        raise DataError(f"source: {path} is empty")


def raw_rows(source: str) -> Iterator[Any]:
    """What a file or a hub data set holds, row by row and unchecked; raises DataError for what can't be read."""
    if source.startswith("hub:"):
        yield from _hub_rows(source)
        return
    path = Path(source)
    try:
        yield from _reader(path)(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8 text ({error})") from error


def most_rows(path: Path) -> int:
    """At least as many as a file has rows, without reading what they hold: lines, or what Parquet says of itself."""
    if path.suffix.lower() == ".parquet":
        return int(_parquet_metadata(path).num_rows)
    return _counted(path, b"{" if path.suffix.lower() == ".json" else b"\n", path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _counted(path: Path, mark: bytes, changed: int) -> int:
    """One more than the marks in a file; `changed` makes another file under the same name another one to count."""
    with path.open("rb") as file:
        return 1 + sum(block.count(mark) for block in iter(lambda: file.read(1 << 20), b""))


def text_bytes(path: Path) -> int:
    """What a file's rows are as text: its size, or what Parquet says of itself before compression."""
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    metadata = _parquet_metadata(path)
    return sum(int(metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups))


def _parquet_metadata(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name}: not a Parquet file ({error})") from error


def _reader(path: Path) -> Callable[[Path], Iterator[Any]]:
    reader = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name}: wanted a file that ends with {', '.join(SUFFIXES)}, got {path.suffix or 'none'}")
    return reader


def _json(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding=TEXT)
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: not valid JSON ({error}); for one object a line, name it .jsonl") from error
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: wanted a list of rows, got {type(rows).__name__}")
    yield from rows


def _jsonl(path: Path) -> Iterator[Any]:
    for number, line in enumerate(path.read_text(encoding=TEXT).split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path.name}: line {number} is not valid JSON ({error})") from error


def _csv(path: Path) -> Iterator[Any]:
    csv.field_size_limit(LARGEST_CELL)
    with path.open(newline="", encoding=TEXT) as file:
        try:
            for row in csv.DictReader(file):
                yield {name: _from_cell(name, value) for name, value in row.items()}
        except csv.Error as error:
            raise DataError(f"{path.name}: not valid CSV ({error})") from error


def _from_cell(name: str | None, value: Any) -> Any:
    """CSV has only text; checks and lists of messages are JSON in it."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_messages = isinstance(found, list) and all(isinstance(item, dict) and "role" in item for item in found)
    return found if name in ("messages", "check") or is_messages else value


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name}: not a Parquet file ({error})") from error


def _hub_rows(source: str) -> Iterator[Any]:
    from datasets import load_dataset_builder

    identity, commit = split_hub(source)
    builder = load_dataset_builder(identity, revision=commit)
    require_own(source, (file for files in (builder.config.data_files or {}).values() for file in files))
    builder.download_and_prepare()
    yield from builder.as_dataset(split="train")


def require_own(source: str, files: Iterable[Any]) -> None:
    """Raise DataError for a data set whose card names files of this machine, of another data set or any other place.

    The commit says nothing of these, and whoever writes a card must not read with it what this machine may.
    """
    identity, commit = split_hub(source)
    own = re.compile(rf"{WITHIN}hf://datasets/{re.escape(f'{identity}@{commit}')}/[^:]+(:[^:]+)*", re.IGNORECASE)
    for file in files:
        if not own.fullmatch(str(file)):
            raise DataError(f"{source}: its card names {file}, which is not in it; take that file as source")
