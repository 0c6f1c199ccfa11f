"""What nobody refers to goes; what anybody works on, refers to or may yet go on with stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from artifacts import garbage as garbage_module
from artifacts.garbage import find_garbage, remove
from artifacts.store import Store

KEYS = [letter * 64 for letter in "abcd"]


def finished(store: Store, key: str) -> Path:
    draft = store.draft("sft", key)
    (draft / "out").mkdir(parents=True)
    (draft / "out" / "weights").write_text("x" * 1000)
    store.commit(
        uses="sft", key=key, kind="adapter", payload={}, fields={}, metrics={}, seconds=1.0, source_digest=""
    )  # fmt: skip
    return store.folder("sft", key)


def unfinished(store: Store, key: str, days: float) -> Path:
    draft = store.draft("sft", key)
    (draft / "work").mkdir(parents=True)
    (draft / "work" / "state").write_text("half")
    then = time.time() - days * 86_400
    for path in (draft / "work" / "state", draft / "work", draft):
        os.utime(path, (then, then))
    return draft


def found(store: Store, kept: set[str]) -> dict[str, str]:
    return {one.folder.name: one.why for one in find_garbage(store, kept, draft_days=14)}


def test_results_that_no_one_refers_to_are_garbage_and_the_others_are_not(store):
    kept, gone = finished(store, KEYS[0]), finished(store, KEYS[1])
    assert found(store, {kept.name}) == {gone.name: "no kept run refers to it"}
    (one,) = find_garbage(store, {kept.name}, 14)
    assert 1000 <= one.size < 5000
    assert remove(store, one) and not gone.exists() and kept.exists()
    assert find_garbage(store, {kept.name}, 14) == []


def test_what_has_another_name_elsewhere_frees_nothing(store, tmp_path):
    folder = finished(store, KEYS[0])
    before = find_garbage(store, set(), 14)[0].size
    os.link(folder / "out" / "weights", tmp_path / "in-mlflow")
    assert find_garbage(store, set(), 14)[0].size == before - 1000


def test_unfinished_work_stays_for_a_while(store):
    young, old = unfinished(store, KEYS[0], days=13), unfinished(store, KEYS[1], days=15)
    referred = unfinished(store, KEYS[2], days=99)
    assert found(store, {referred.name}) == {old.name: "unfinished, and not touched for 15 days"}
    assert young.exists()


def test_what_someone_works_on_stays_whatever_else_is_said(store):
    unfinished(store, KEYS[0], days=99)
    finished(store, KEYS[1])
    with store.lock("sft", KEYS[0]), store.lock("sft", KEYS[1]):
        assert found(store, set()) == {}
    (first, _) = find_garbage(store, set(), 14)
    with store.lock("sft", KEYS[1]):  # taken up between looking and removing
        assert not remove(store, first) and first.folder.exists()


def test_damaged_results_and_what_an_interrupted_clean_up_left_go_too(store, monkeypatch):
    finished(store, KEYS[0])
    store.set_aside("sft", KEYS[0])
    folder = finished(store, KEYS[1])

    def dies(path):
        raise KeyboardInterrupt

    (damaged, unreferenced) = sorted(find_garbage(store, set(), 14), key=lambda one: one.why)
    assert damaged.why == "damaged, and made again since"
    with monkeypatch.context() as patch:
        patch.setattr(garbage_module.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            remove(store, unreferenced)
    assert not folder.exists() and store.damage("sft", KEYS[1]) == "", "the store has it whole or not at all"
    left = find_garbage(store, set(), 14)
    assert {one.why for one in left} == {damaged.why, "left by a clean-up that was interrupted"}
    assert all(remove(store, one) for one in left)
    assert find_garbage(store, set(), 14) == []
