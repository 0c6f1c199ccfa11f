from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from artifacts.errors import HomeError, InterruptedStage, StageError
from artifacts.manifest import Manifest
from artifacts.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "ab" * 32


def write_draft(store: Store, text: str = "weights", **files: str) -> Path:
    draft = store.draft("sft", KEY)
    (draft / "out" / "sub").mkdir(parents=True, exist_ok=True)
    (draft / "work").mkdir(exist_ok=True)
    (draft / "out" / "model.safetensors").write_text(text)
    (draft / "out" / "sub" / "extra.json").write_text("{}")
    for name, content in files.items():
        (draft / name).write_text(content)
    return draft


def commit(store: Store, **changes: object) -> Manifest:
    given = {
        "uses": "sft", "key": KEY, "kind": "adapter", "payload": {"fields": {}}, "fields": {}, "metrics": {"m": 1.0},
        "seconds": 1.0, "source_digest": "s",
    }  # fmt: skip
    return store.commit(**{**given, **changes})  # type: ignore[arg-type]


def test_nothing_is_created_until_something_is_written(home: Path, store: Store) -> None:
    assert store.damage("sft", KEY) == ""
    assert store.get("sft", KEY) is None
    assert list(store.all()) == []
    assert not home.exists()


def test_a_draft_does_not_exist_as_a_result(store: Store) -> None:
    write_draft(store, **{"manifest.json": "{}"})
    assert store.damage("sft", KEY) == ""
    assert list(store.all()) == []


def test_a_committed_result_is_there_and_its_scratch_is_gone(store: Store) -> None:
    draft = write_draft(store)
    manifest = commit(store)
    folder = store.folder("sft", KEY)
    assert store.damage("sft", KEY) is None
    assert store.get("sft", KEY) == manifest == Manifest.read(folder)
    assert set(manifest.files) == {"model.safetensors", "sub/extra.json"}
    assert manifest.files["model.safetensors"].size == len("weights")
    assert not draft.exists()
    assert not (folder / "work").exists()
    assert "torch" in manifest.versions


def test_committed_files_can_be_written_by_nobody(store: Store) -> None:
    write_draft(store)
    commit(store)
    assert {path.stat().st_mode & 0o777 for path in (store.folder("sft", KEY) / "out").rglob("*.*")} == {0o444}


def test_the_digest_covers_the_output_alone(tmp_path: Path) -> None:
    found = []
    for name, changes in (("one", {}), ("two", {"seconds": 99.0, "metrics": {"m": 2.0}, "source_digest": "t"})):
        store = Store(tmp_path / name)
        write_draft(store, **{"log.txt": name, "metrics.jsonl": name})
        found.append(commit(store, **changes).digest)
    assert found[0] == found[1]
    other = Store(tmp_path / "three")
    write_draft(other, "other weights")
    assert commit(other).digest != found[0]


def test_an_output_without_files_is_refused(store: Store) -> None:
    (store.draft("sft", KEY) / "out").mkdir(parents=True)
    with pytest.raises(StageError, match="finished without writing anything"):
        commit(store)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "sub" / "extra.json").unlink(), "sub/extra.json is missing"),
        (lambda out: (out / "model.safetensors").write_text("weight"), "model.safetensors has 6 bytes instead of 7"),
        (lambda out: (out / "model.safetensors").write_text("weighty"), "the content of model.safetensors has changed"),
        (lambda out: (out.parent / "manifest.json").unlink(), "its manifest is missing or unreadable"),
        (lambda out: (out.parent / "manifest.json").write_text('{"uses": '), "its manifest is missing or unreadable"),
        (lambda out: shutil.rmtree(out), "model.safetensors is missing"),
    ],
)
@pytest.mark.parametrize("looks_first", [False, True], ids=["at once", "after a look"])
def test_damage_is_named(store: Store, damage: object, message: str, looks_first: bool) -> None:
    write_draft(store)
    commit(store)
    if looks_first:
        time.sleep(0.06)
        assert store.damage("sft", KEY) is None
        store.digests.save()
    out = store.folder("sft", KEY) / "out"
    for path in out.rglob("*.*"):
        path.chmod(0o644)
    damage(out)  # type: ignore[operator]
    assert Store(store.home).damage("sft", KEY) == message
    assert Store(store.home).get("sft", KEY) is None


def test_a_damaged_result_is_set_aside_and_made_again(store: Store) -> None:
    write_draft(store)
    first = commit(store)
    store.set_aside("sft", KEY)
    assert store.damage("sft", KEY) == ""
    write_draft(store)
    assert commit(store).digest == first.digest
    assert len(list((store.home / "damaged").iterdir())) == 1


def test_a_commit_over_a_result_moves_the_old_one_out_of_the_way(store: Store) -> None:
    write_draft(store)
    commit(store)
    write_draft(store, "new")
    commit(store)
    assert (store.folder("sft", KEY) / "out" / "model.safetensors").read_text() == "new"
    assert len(list((store.home / "damaged").iterdir())) == 1


def test_results_are_listed_newest_first_and_broken_ones_left_out(store: Store) -> None:
    for letter in "abc":
        key = letter * 64
        (store.draft("sft", key) / "out").mkdir(parents=True)
        (store.draft("sft", key) / "out" / "x").write_text(letter)
        commit(store, key=key)
        time.sleep(0.002)
    (store.folder("sft", "b" * 64) / "manifest.json").write_text("rubbish")
    assert [manifest.key[0] for manifest in store.all()] == ["c", "a"]


COMMIT_KILLED = """
import os, signal, sys
from pathlib import Path
from artifacts.store import Store
where, home, key = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if where == "rename":
    Path.rename = die
else:
    import artifacts.store
    artifacts.store.write_synced = die
Store(home).commit(
    uses="sft", key=key, kind="adapter", payload={}, fields={}, metrics={}, seconds=1.0, source_digest=""
)
"""


@pytest.mark.parametrize("where", ["manifest", "rename"])
def test_a_commit_that_is_killed_leaves_no_result_and_loses_nothing(store: Store, where: str) -> None:
    draft = write_draft(store)
    (draft / "work" / "checkpoint-4").mkdir()
    done = subprocess.run([sys.executable, "-c", COMMIT_KILLED, where, str(store.home), KEY], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert store.damage("sft", KEY) == ""
    assert list(store.all()) == []
    assert (draft / "work" / "checkpoint-4").exists()
    assert all(path.stat().st_mode & 0o200 for path in (draft / "out").rglob("*.*")), "can be written again"
    write_draft(store)
    commit(store)
    assert store.damage("sft", KEY) is None


HOLD = """
import sys, time
from pathlib import Path
from artifacts.store import Store
with Store(Path(sys.argv[1])).lock("sft", sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


class Holder(NamedTuple):
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def holder(store: Store):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store.home), KEY], cwd=ROOT, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield Holder(process)
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_waits_is_told_for_whom_and_takes_over_when_the_first_is_killed(
    store: Store, holder: Holder
) -> None:
    told: list[str] = []
    killed: list[float] = []

    def kill_soon() -> None:
        killed.append(time.monotonic())
        holder.kill()

    timer = threading.Timer(0.3, kill_soon)
    timer.start()
    with store.lock("sft", KEY, told.append):
        assert time.monotonic() - killed[0] < 1
    assert set(told) == {f"process {holder.process.pid}"}


def test_whoever_waits_may_give_up(store: Store, holder: Holder) -> None:
    def give_up(who: str) -> None:
        raise InterruptedStage(who)

    with pytest.raises(InterruptedStage, match=str(holder.process.pid)), store.lock("sft", KEY, give_up):
        pass
    holder.kill()
    with store.lock("sft", KEY, lambda _: pytest.fail("waited")):
        pass


def test_another_key_does_not_wait(store: Store, holder: Holder) -> None:
    with store.lock("sft", "cd" * 32, lambda _: pytest.fail("waited")):
        pass


def test_the_lock_lives_as_long_as_a_child_that_inherited_it(store: Store) -> None:
    with store.lock("sft", KEY) as fd:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
    told: list[str] = []
    timer = threading.Timer(0.2, child.kill)
    timer.start()
    with store.lock("sft", KEY, told.append):
        assert set(told) == {f"process {os.getpid()}"}
    child.wait()


def test_a_home_under_a_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "home", tmp_path / "file"):
        with pytest.raises(HomeError, match=r"ALIGN_HOME: wanted a folder that can be written, got .*file"):
            Store(place).check_writable(0)


def test_too_little_room_is_an_error_that_says_how_much_is_missing(store: Store) -> None:
    store.check_writable(1)
    with pytest.raises(HomeError, match=r"wanted 1,048,576,000,000 MiB free for this run, got [\d,]+ MiB"):
        store.check_writable(1_048_576_000_000 << 20)
    assert list(store.home.iterdir()) == []
