"""A checkpoint counts when it is complete and intact; whatever happens, the last good one stays."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.errors import StageError
from tasks.training.checkpoints import disk_is_full, last_good, newest_checkpoint, publish, require_space, saving
from tests.small_disk import small_disk


def save(work: Path, number: int, keep: int = 2, content: str = "weights") -> Path:
    """A checkpoint as a trainer writes one: some files, one of them in a folder."""
    aside = saving(work) / f"checkpoint-{number}"
    (aside / "ref").mkdir(parents=True)
    (aside / "weights").write_text(f"{content} {number}")
    (aside / "ref" / "weights").write_text("reference")
    return publish(aside, work, keep)


def names(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir())


def newest(work: Path) -> tuple[str | None, list[str]]:
    """Its name, and what was said while looking."""
    said: list[str] = []
    found = newest_checkpoint(work, said.append)
    return found.name if found else None, said


def test_it_is_written_aside_and_counts_once_it_is_renamed(tmp_path):
    assert newest(tmp_path) == (None, [])
    final = save(tmp_path, 4)
    assert final == tmp_path / "checkpoint-4" and newest(tmp_path) == ("checkpoint-4", [])
    assert set(json.loads((final / "manifest.json").read_text())) == {"weights", "ref/weights"}


def test_what_a_save_that_was_interrupted_left_never_counts_and_is_cleared_away(tmp_path):
    save(tmp_path, 4)
    torn = saving(tmp_path) / "checkpoint-8"
    torn.mkdir(parents=True)
    (torn / "weights").write_text("half")
    (torn / "manifest.json").write_text("{}")
    assert newest(tmp_path) == ("checkpoint-4", [])
    assert names(tmp_path) == ["checkpoint-4"]


def test_the_newest_is_the_highest_number_and_keep_bounds_the_disk(tmp_path):
    for number in (2, 8, 9, 10):
        save(tmp_path, number)
    assert newest(tmp_path)[0] == "checkpoint-10"
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: (path / "weights").write_text("Weights 8"), "the content of weights has changed"),
        (lambda path: os.truncate(path / "weights", 3), "the content of weights has changed"),
        (lambda path: (path / "ref" / "weights").unlink(), "ref/weights is missing"),
        (lambda path: (path / "manifest.json").unlink(), "its manifest is missing or unreadable"),
        (lambda path: os.truncate(path / "manifest.json", 5), "its manifest is missing or unreadable"),
    ],
    ids=["flipped", "torn", "lost", "no manifest", "torn manifest"],
)
def test_a_damaged_one_is_passed_over_by_name_for_the_one_before(tmp_path, harm, said):
    save(tmp_path, 4)
    harm(save(tmp_path, 8))
    assert newest(tmp_path) == ("checkpoint-4", [f"warning: checkpoint-8 is passed over: {said}"])
    assert last_good(tmp_path) == "the last good checkpoint is checkpoint-4"


def test_one_that_was_passed_over_makes_way_and_crowds_out_no_good_one(tmp_path):
    """With one to keep, the damaged checkpoint-8 must not outlive a new checkpoint-5 for its higher number."""
    save(tmp_path, 4)
    (save(tmp_path, 8) / "weights").write_text("damaged")
    save(tmp_path, 5, keep=1)
    assert newest(tmp_path) == ("checkpoint-5", [])
    save(tmp_path, 8, keep=1, content="new")
    assert (tmp_path / "checkpoint-8" / "weights").read_text() == "new 8"


def test_without_any_it_is_said_that_there_is_none(tmp_path):
    assert last_good(tmp_path) == "there is no checkpoint yet"


# Disks that are full


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Eight megabytes."""
    try:
        with small_disk(tmp_path, 8):
            yield tmp_path
    except PermissionError:
        pytest.skip("may not mount a small disk")


def test_a_save_that_does_not_fit_is_refused_before_it_begins_and_the_good_one_stays(small):
    save(small, 4)
    require_space(small, 1 << 20)
    with pytest.raises(StageError, match=r"wants 7 MiB .* has 8 MiB free; the last good checkpoint is checkpoint-4"):
        require_space(small, 7 << 20)
    assert newest(small)[0] == "checkpoint-4"


def test_a_disk_that_filled_is_known_from_the_error_or_from_the_disk(small):
    assert disk_is_full(OSError(errno.ENOSPC, "No space left on device"), small)
    assert not disk_is_full(RuntimeError("anything else"), small)
    (small / "ballast").write_bytes(b"x" * (7 << 20) + b"x" * (1 << 19))
    assert disk_is_full(RuntimeError("a writer of tensors has words of its own for it"), small)
