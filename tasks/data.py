"""The data stage: any file of rows -> one normalised, rendered, tokenised form, with a split and a report.

Nothing is dropped without being counted: `report.json` says how many rows came in, went out, and why not.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts.errors import DataError
from artifacts.fingerprint import FileDigests, canonical
from artifacts.kinds import Artifact, Checkpoint, Dataset, Demonstrations, Feedback, Preferences
from tasks.context import Context
from tasks.memory.lengths import Lengths
from tasks.memory.parts import Memory
from tasks.memory.reading import held_rows
from tasks.rendering import Renderer, Template
from tasks.row_files import most_rows, require_readable, text_bytes
from tasks.rows import Form, Row, RowError, read_rows, shown_problems
from tasks.sources import locate
from tasks.splits import write_split
from tasks.stage import Outside, Stage, Terms

KINDS: dict[Form, type[Dataset]] = {
    "demonstrations": Demonstrations, "preferences": Preferences, "feedback": Feedback,
}  # fmt: skip


class Data(Stage):
    """Rows for training and the held-out rows (`test`) that go with them."""

    outside: ClassVar[Mapping[str, Outside]] = {"source": "data", "test_source": "data"}

    base: Checkpoint
    """Whose tokenizer and chat template render the rows."""
    form: Form
    """`demonstrations` (prompt and completion), `preferences` (prompt, chosen and rejected) or `feedback` (prompt,
    completion and label)."""
    source: str = Field(min_length=1)
    """A .json, .jsonl, .csv or .parquet file, or a hub id."""
    test_source: str | None = None
    """A file of held-out rows; without it, `test_size` of the prompts are held out."""
    test_size: float = Field(0.1, ge=0, lt=1)
    """The share of prompts that is held out of `source`; unused with `test_source`."""
    template: Template = "chat"
    """The base's chat template, or the `### Instruction:` text."""
    max_length: int = Field(512, ge=8)
    """Tokens in a row; what is longer is dealt with as `overlong` says."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """Cut a longer row at the end, or leave it out; either is counted in the report."""
    limit: int | None = Field(None, ge=2)
    """Take only so many of the rows for training, chosen by the seed."""

    split_pairs: bool = False
    """For `form: feedback` from a file of pairs: chosen completions are desirable, rejected ones undesirable."""

    @model_validator(mode="after")
    def _splits_into_feedback(self) -> Self:
        if self.split_pairs and self.form != "feedback":
            raise ValueError("split_pairs wants `form: feedback`, which it makes of pairs")
        return self

    def output(self, key: str, path: Path) -> Artifact:
        return KINDS[self.form](key=key, path=path, base=self.base)

    def row_bound(self, terms: Terms) -> Lengths | None:
        """As many rows as the file has lines, each as long as `max_length` lets it be."""
        rows = None if self.source.startswith("hub:") else most_rows(Path(self.source))
        if rows is None:
            return None
        rows *= 2 if self.split_pairs else 1
        sides = 2 if self.form == "preferences" else 1
        return Lengths.at_most(min(rows, self.limit or rows), self.max_length, sides)

    def memory(self, terms: Terms) -> Memory | None:
        files = [Path(source) for source in (self.source, self.test_source) if source is not None]
        if any(file.as_posix().startswith("hub:") for file in files):
            return None
        return held_rows(sum(map(most_rows, files)), sum(map(text_bytes, files)), terms.kind)

    def computes(self) -> bool:
        return False

    def locate(self, folders: Sequence[Path]) -> Self:
        found = {"source": locate(self.source, folders, repo="dataset")}
        if self.test_source is not None:
            found["test_source"] = locate(self.test_source, folders, repo="dataset")
        for source in found.values():
            if not source.startswith("hub:"):
                require_readable(Path(source))
        return self.model_copy(update=found)

    def content(self, digests: FileDigests) -> dict[str, Any]:
        named = {"source": self.source, "test_source": self.test_source}
        return {name: _content(source, digests) for name, source in named.items() if source is not None}

    def run(self, ctx: Context) -> dict[str, float]:
        check_context(self.base, self.max_length)
        reasons: Counter[str] = Counter()
        rows = self._read(self.source)
        total = len(rows)
        rows = _distinct(rows, reasons, self.source)
        if self.test_source is None:
            test_reasons = reasons
            train, test = _split(rows, self.test_size, ctx.seed)
        else:
            test_reasons = Counter()
            test = _distinct(self._read(self.test_source), test_reasons, self.test_source)
            train = _without_prompts(rows, test, reasons)
        if self.limit is not None and len(train) > self.limit:
            reasons["over the limit"] += len(train) - self.limit
            train = sorted(_shuffled(train, ctx.seed)[: self.limit], key=lambda row: row.row)
        if not train:
            raise DataError(
                f"{Path(self.source).name}: no row is left for training; held out or dropped: {dict(reasons)}"
            )
        renderer = Renderer(self.base, self.template)
        report: dict[str, Any] = {
            "form": self.form,
            "rows_in": total,
            "train": self._write(ctx, "train", train, renderer, self.source, reasons),
            "test": self._write(ctx, "test", test, renderer, self.test_source or self.source, test_reasons),
            "left_out": dict(sorted(reasons.items())),
        }
        if self.test_source is not None:
            report["left_out_of_test"] = dict(sorted(test_reasons.items()))
        if not report["train"]["rows"]:
            raise DataError(f"{Path(self.source).name}: no row is left for training; left out: {report['left_out']}")
        (ctx.out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
        ctx.say(_summary(report))
        return {
            "data/rows_train": float(report["train"]["rows"]), "data/rows_test": float(report["test"]["rows"]),
            "data/tokens_train": float(report["train"]["tokens"]),
            "data/supervised_share": report["train"]["supervised_share"],
        }  # fmt: skip

    def _read(self, source: str) -> list[Row]:
        return read_rows(source, self.form, split_pairs=self.split_pairs)

    def _write(
        self,
        ctx: Context,
        split: str,
        rows: list[Row],
        renderer: Renderer,
        source: str,
        reasons: Counter[str],
    ) -> dict[str, Any]:
        """Tokenise rows into `<split>.jsonl`; gives their figures."""
        written, problems, cut = [], [], 0
        for done, row in enumerate(rows, start=1):
            try:
                item, was_cut = self._tokenised(row, renderer)
            except RowError as error:
                problems.append(f"{Path(source).name}: row {row.row}: {error}")
                continue
            if was_cut and self.overlong == "drop":
                reasons[f"longer than {self.max_length} tokens"] += 1
                continue
            if was_cut and self.form == "preferences" and item["chosen_ids"] == item["rejected_ids"]:
                reasons[f"pair is the same within {self.max_length} tokens"] += 1
                continue
            cut += was_cut
            written.append(item)
            if done % 100 == 0 or done == len(rows):
                ctx.progress(done, len(rows), f"{split} rows")
        if problems:
            raise DataError(shown_problems(problems))
        return {**write_split(written, ctx.out / f"{split}.jsonl"), "truncated": cut}

    def _tokenised(self, row: Row, renderer: Renderer) -> tuple[dict[str, Any], bool]:
        """The row with its ids, and whether anything had to be cut."""
        prompt_ids = renderer.prompt_ids(row)
        room = self.max_length - len(prompt_ids)
        item: dict[str, Any] = {"row": row.row, "prompt": row.prompt, "prompt_ids": prompt_ids}
        if row.check is not None:
            item["check"] = row.check
        if row.label is not None:
            item["label"] = row.label
        names = ["chosen", "rejected"] if self.form == "preferences" else ["completion"]
        was_cut = False
        for name in names:
            ids = renderer.completion_ids(row, getattr(row, name))
            was_cut |= len(ids) > room
            if room <= 0 and self.overlong == "truncate":
                raise RowError(
                    f"its prompt has {len(prompt_ids)} tokens, so within max_length {self.max_length} no supervised "
                    "token is left; raise max_length, or set `overlong: drop`"
                )
            item[name] = getattr(row, name)
            item[f"{name}_ids"] = ids[:room]
        return item, was_cut


def _content(source: str, digests: FileDigests) -> dict[str, str]:
    if source.startswith("hub:"):
        return {"hub": source}
    return {"sha256": digests.of(Path(source)), "format": Path(source).suffix.lower()}


def check_context(base: Checkpoint, max_length: int) -> None:
    """Raise DataError if rows may get longer than the base has positions for."""
    config = json.loads((base.path / "config.json").read_text())
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions and max_length > positions:
        raise DataError(f"max_length: wanted at most {positions}, the base's context, got {max_length}")


def _distinct(rows: list[Row], reasons: Counter[str], source: str) -> list[Row]:
    """Each row once, the first of equals kept."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault(row.content, row)
    if len(first) == 1 and len(rows) > 1:
        raise DataError(f"{Path(source).name}: all {len(rows)} rows are the same one; there is nothing to learn from")
    if len(first) < len(rows):
        reasons["duplicate"] += len(rows) - len(first)
    return list(first.values())


def _shuffled(rows: Iterable[Row], seed: int) -> list[Row]:
    """In an order that depends on the seed and on each row's prompt alone."""
    return sorted(rows, key=lambda row: (_draw(row, seed), row.row))


def _draw(row: Row, seed: int) -> str:
    return hashlib.sha256(canonical([seed, row.conversation]).encode()).hexdigest()


def _split(rows: list[Row], test_size: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out a share of the prompts, never a part of one prompt's rows."""
    draws = sorted({_draw(row, seed) for row in rows})
    held = set(draws[: round(test_size * len(draws))])
    return [row for row in rows if _draw(row, seed) not in held], [row for row in rows if _draw(row, seed) in held]


def _without_prompts(rows: list[Row], test: list[Row], reasons: Counter[str]) -> list[Row]:
    """The rows whose prompt is not among the held-out ones."""
    held = {row.conversation for row in test}
    kept = [row for row in rows if row.conversation not in held]
    if len(kept) < len(rows):
        reasons["prompt is in the held-out file"] += len(rows) - len(kept)
    return kept


def _summary(report: dict[str, Any]) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items()) or "none"
    train = report["train"]
    return (
        f"{report['rows_in']} rows in; {train['rows']} for training, {report['test']['rows']} held out; left out: "
        f"{left_out}; cut: {train['truncated']}; {train['tokens']} tokens, {train['supervised_share']:.0%} supervised"
    )
