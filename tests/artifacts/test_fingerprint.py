from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.errors import FingerprintError
from artifacts.fingerprint import FileDigests, canonical, digest, file_digest, tree_digest


def age(path: Path, seconds: float = 10) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_order_of_a_mapping_makes_no_difference() -> None:
    assert canonical({"b": 1, "a": {"d": 2, "c": 3}}) == canonical({"a": {"c": 3, "d": 2}, "b": 1})
    assert canonical({"b": 1, "a": 2}) == '{"a":2,"b":1}'


def test_the_order_of_a_list_does() -> None:
    assert digest([1, 2]) != digest([2, 1])


def test_sets_are_sorted_whatever_they_hold() -> None:
    assert canonical({3, 1, 2}) == "[1,2,3]"
    assert canonical({"q": {"v_proj", "q_proj"}}) == '{"q":["q_proj","v_proj"]}'
    assert canonical(frozenset({(2, "b"), (1, "a")})) == '[[1,"a"],[2,"b"]]'


def test_text_keeps_its_letters_and_true_is_not_one() -> None:
    assert canonical("Āé") == '"Āé"'
    assert digest(True) != digest(1)
    assert digest(None) != digest("")


def test_a_digest_is_the_same_in_every_process() -> None:
    code = "from artifacts.fingerprint import digest; print(digest({'s': {'x', 'y', 'z', 'w'}, 'f': 1e-4, 'n': None}))"
    root = Path(__file__).resolve().parent.parent.parent
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"stage": {"f": len}}, r"value\.stage\.f: a builtin_function_or_method has no stable form"),
        ({"stage": [1, lambda: 0]}, r"value\.stage\[1\]: a function has no stable form"),
        ({"x": object()}, r"value\.x: a object has no stable form"),
        ({"rate": float("nan")}, r"value\.rate: nan has no canonical form"),
        ([1.0, float("inf")], r"value\[1\]: inf has no canonical form"),
        ({"a": {1: "x"}}, r"value\.a: keys must be text, got 1"),
        ({"p": Path("x")}, r"value\.p: a \w+Path has no stable form"),
    ],
)
def test_what_has_no_stable_form_is_refused_with_its_place(value: object, message: str) -> None:
    with pytest.raises(FingerprintError, match=message):
        digest(value)


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr("artifacts.fingerprint.file_digest", counting)
    path = tmp_path / "rows.jsonl"
    path.write_text("one")
    age(path)
    memory = tmp_path / "memory" / "digests.json"
    digests = FileDigests(memory)
    first = digests.of(path)
    digests.save()
    again = FileDigests(memory)
    assert again.of(path) == first
    assert len(read) == 1
    path.write_text("two")
    age(path, 5)
    assert again.of(path) != first
    path.write_text("longer")
    assert again.of(path) == file_digest(path)
    assert len(read) == 3


def test_a_file_written_within_the_clocks_tick_is_not_trusted(tmp_path: Path) -> None:
    path, digests = tmp_path / "rows.jsonl", FileDigests(tmp_path / "digests.json")
    path.write_text("one")
    stat = path.stat()
    first = digests.of(path)
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests.of(path) != first


def test_one_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even by one that says it is as old, as a copy that keeps times does."""
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_text("old")
    other.write_text("new")
    then = time.time() - 10
    for each in (path, other):
        os.utime(each, (then, then))

    def replaced_meanwhile(read: Path) -> str:
        sha = file_digest(read)
        if other.exists():
            other.replace(path)
        return sha

    monkeypatch.setattr("artifacts.fingerprint.file_digest", replaced_meanwhile)
    digests = FileDigests(tmp_path / "digests.json")
    old = digests.of(path)
    assert digests.of(path) == file_digest(path) != old


@pytest.mark.parametrize("rubbish", ["", "[1, 2]", "{", '"x"', "\0"])
def test_a_broken_memory_of_digests_costs_time_and_nothing_else(tmp_path: Path, rubbish: str) -> None:
    memory, path = tmp_path / "digests.json", tmp_path / "rows"
    memory.write_text(rubbish)
    path.write_text("one")
    digests = FileDigests(memory)
    assert digests.of(path) == file_digest(path)
    digests.save()


def test_digests_that_cannot_be_kept_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    FileDigests(tmp_path / "file" / "digests.json").save()


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    path, memory = tmp_path / "rows", tmp_path / "digests.json"
    path.write_text("x")
    age(path)
    digests = FileDigests(memory)
    digests.of(path)
    path.unlink()
    digests.save()
    assert memory.read_text() == "{}"


def test_a_folders_digest_is_over_relative_names_and_content(tmp_path: Path) -> None:
    found = []
    for name in ("here", "there"):
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        (root / "a").write_text("1")
        (root / "sub" / "b").write_text("2")
        found.append(tree_digest(root, [root / "sub" / "b", root / "a"], FileDigests(tmp_path / "memory")))
    assert found[0] == found[1]
    (tmp_path / "there" / "a").rename(tmp_path / "there" / "c")
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert tree_digest(tmp_path / "there", files, FileDigests(tmp_path / "memory")) != found[0]
