"""Rewards that are programs: found, fingerprinted, called, and blamed by row when they fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import DataError, StageError, UserError
from artifacts.fingerprint import FileDigests
from tasks.context import Execution
from tasks.ppo import PPO
from tasks.rl.loop import Loop
from tasks.rl.program_files import imported_files
from tasks.rl.programs import Programs, load_program, locate_program
from tests.tasks.rl.runs import World, run, same, source

pytestmark = pytest.mark.usefixtures("one_thread", "forgotten_modules")
ROWS = [
    {"row": 4, "prompt": "first", "check": {"kind": "contains", "words": ["a"]}},
    {"row": 7, "prompt": "second", "check": {"kind": "contains", "words": ["b"]}},
    {"row": 9, "prompt": "third", "check": {"kind": "contains", "words": ["a"]}},
]
TEXTS = ["a", "aa", "aaa"]


@pytest.fixture
def forgotten_modules() -> Iterator[None]:
    """What a test imports is gone after it, as it is gone with a trainer's process."""
    modules, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(modules):
        if not name.startswith(("torch", "transformers", "tests", "tasks", "peft")):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.build(tmp_path_factory.mktemp("world"))


def programs(folder: Path, body: str) -> Programs:
    return Programs({f"{source(folder, body)}:score": 1.0})


# Finding


@pytest.mark.parametrize("name", ["judge:score", "judge.py:score"])
def test_a_program_is_found_in_the_first_folder_that_has_it(tmp_path, name):
    source(tmp_path / "b", "pass")
    wanted = source(tmp_path / "a", "pass")
    assert locate_program(name, [tmp_path / "nothing", tmp_path / "a", tmp_path / "b"]) == f"{wanted}:score"


def test_a_dotted_name_is_a_module_in_a_package_whose_own_imports_work(tmp_path):
    (tmp_path / "ours" / "judges").mkdir(parents=True)
    for folder in ("ours", "ours/judges"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "ours" / "helper.py").write_text("BONUS = 5.0\n")
    (tmp_path / "ours" / "judges" / "strict.py").write_text(
        "from ..helper import BONUS\n\ndef score(prompts, completions):\n    return [BONUS for _ in prompts]\n"
    )
    located = locate_program("ours.judges.strict:score", [tmp_path])
    assert Programs({located: 1.0})(ROWS, TEXTS) == {"strict:score": [5.0, 5.0, 5.0]}


def test_a_file_in_a_package_named_like_one_of_ours_is_itself(tmp_path):
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "judge.py").write_text("def score(prompts, completions):\n    return [1.5] * len(prompts)\n")
    located = locate_program("judge:score", [folder])
    assert load_program(located)([{"prompt": "x"}], ["y"]) == [1.5]


def test_an_installed_module_is_found_too():
    assert locate_program("textwrap:dedent", []).endswith("textwrap.py:dedent")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("juge:score", "no module 'juge' is in"),
        ("gone.py:score", "no module 'gone.py' is in"),
        ("judge:scores", "defines no 'scores'; it has: score"),
        ("judge:", "defines no ''; it has: score"),
        (":score", "no module '' is in"),
        ("broken:score", "can't be read as Python"),
    ],
)
def test_a_program_that_is_not_there_is_refused_with_what_there_is(tmp_path, name, message):
    source(tmp_path, "pass")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(UserError) as caught:
        locate_program(name, [tmp_path])
    assert message in str(caught.value)


def test_a_file_that_fails_when_imported_is_the_users_to_mend(tmp_path):
    path = source(tmp_path, "return []")
    path.write_text("import a_module_that_nobody_has\n" + path.read_text())
    with pytest.raises(UserError, match=r"can't be imported: ModuleNotFoundError: .*a_module_that_nobody_has"):
        Programs({f"{path}:score": 1.0})


@pytest.mark.parametrize("name", ["statistics", "json"])
def test_a_file_may_be_named_like_a_module_of_the_library_which_stays_what_it_was(tmp_path, name):
    """`json` is loaded by now, `statistics` perhaps not."""
    path = source(tmp_path, "return [1.5 for _ in prompts]", name=f"{name}.py")
    assert Programs({f"{path}:score": 1.0})(ROWS, TEXTS) == {f"{name}:score": [1.5, 1.5, 1.5]}
    assert importlib.import_module(name).__file__ != str(path)


def test_two_programs_of_one_name_in_two_folders_both_count(tmp_path):
    ones, twos = (source(tmp_path / name, f"return [{name[1]}.0] * len(prompts)") for name in ("f1", "f2"))
    both = Programs({f"{ones}:score": 1.0, f"{twos}:score": 10.0})
    assert both.weighted(both(ROWS, TEXTS), 3) == [21.0, 21.0, 21.0]


def test_two_programs_of_one_name_both_enter_the_key(world, tmp_path):
    ones, twos = (source(tmp_path / name, f"return [{name[1]}.0] * len(prompts)") for name in ("f1", "f2"))

    def content() -> Any:
        stage = PPO.model_validate(world.fields(programs={f"{ones}:score": 1.0, f"{twos}:score": 10.0}))
        return stage.content(FileDigests(tmp_path / "memory"))

    before = content()
    for path in (ones, twos):
        text = path.read_text()
        path.write_text(text + "# changed\n")
        assert content() != before, path
        path.write_text(text)


# The key


def test_the_key_holds_a_programs_source_and_weight_and_no_path(world, tmp_path):
    def content(path: Path, weight: float = 1.0) -> dict[str, Any]:
        stage = PPO.model_validate(world.fields(programs={f"{path}:score": weight, "checks": 0.5}))
        return stage.content(FileDigests(tmp_path / "memory"))

    path = source(tmp_path / "here", "return [0.0] * len(prompts)")
    before = content(path)
    assert str(tmp_path) not in repr(before) and set(before["programs"]) == {"judge:score", "checks"}
    assert content(source(tmp_path / "there", "return [0.0] * len(prompts)")) == before
    assert content(path, weight=2.0) != before
    path.write_text(path.read_text() + "# a comment\n")
    assert content(path) != before


def test_what_a_program_imports_from_beside_it_is_in_the_key_too(world, tmp_path):
    """And what that imports; in a package from the package; not what lies beside it unused, nor libraries."""
    path = source(tmp_path / "alone", "import words\n    return [words.worth(text) for text in completions]")
    beside = path.with_name("words.py")
    beside.write_text("import math\nimport deep\n\ndef worth(text):\n    return float(len(text)) + deep.MORE\n")
    deep, unused = path.with_name("deep.py"), path.with_name("unused.py")
    package = tmp_path / "house" / "judge.py"
    package.parent.mkdir()
    package.write_text(
        "from . import words\nfrom .rooms.small import MORE\n\ndef score(prompts, completions):\n    return []\n"
    )
    small = package.parent / "rooms" / "small.py"
    small.parent.mkdir()
    for file in (deep, unused, small):
        file.write_text("MORE = 1.0\n")
    for file in (package.parent / "__init__.py", small.with_name("__init__.py"), package.with_name("words.py")):
        file.write_text("")
    assert [file.name for file in imported_files(path)] == ["deep.py", "words.py"]
    assert [file.name for file in imported_files(package)] == ["__init__.py", "__init__.py", "small.py", "words.py"]

    def content() -> Any:
        stage = PPO.model_validate(world.fields(programs={f"{path}:score": 1.0, f"{package}:score": 1.0}))
        return stage.content(FileDigests(tmp_path / "memory"))

    for file, enters in ((beside, True), (deep, True), (small, True), (unused, False)):
        before = content()
        file.write_text(file.read_text() + "# changed\n")
        assert (content() != before) is enters, file


# Calling


def test_a_program_gets_prompts_and_completions_and_the_rows_if_it_asks(tmp_path):
    (tmp_path / "judge.py").write_text(
        "def plain(prompts, completions):\n    return [len(p) + 10 * len(c) for p, c in zip(prompts, completions)]\n\n"
        "def seeing(prompts, completions, rows):\n    return [row['row'] for row in rows]\n"
    )
    both = Programs({f"{tmp_path}/judge.py:plain": 1.0, f"{tmp_path}/judge.py:seeing": 1.0})
    assert both(ROWS, TEXTS) == {"judge:plain": [15.0, 26.0, 35.0], "judge:seeing": [4.0, 7.0, 9.0]}


def test_checks_pay_1_for_a_row_whose_own_check_is_met():
    assert Programs({"checks": 2.0})(ROWS, TEXTS) == {"checks": [1.0, 0.0, 1.0]}


@pytest.mark.parametrize(
    "kind", ["[0.5, 1, 2]", "(0.5, 1, 2)", "iter([0.5, 1, 2])", "__import__('numpy').array([0.5, 1, 2])",
             "__import__('torch').tensor([0.5, 1, 2])"]
)  # fmt: skip
def test_any_sequence_of_numbers_will_do(tmp_path, kind):
    assert programs(tmp_path, f"return {kind}")(ROWS, TEXTS) == {"judge:score": [0.5, 1.0, 2.0]}


def test_the_sum_is_by_weight(tmp_path):
    found = Programs({f"{source(tmp_path, 'return [1.0, 2.0, 4.0]')}:score": 0.5, "checks": -2.0})
    assert found.weighted(found(ROWS, TEXTS), 3) == [0.5 - 2, 1.0, 2.0 - 2]
    assert Programs({}).weighted({}, 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0, math.nan, 2.0]", "wanted a finite number for row 7, got nan: 'second'"),
        ("return [1.0, 2.0, math.inf]", "wanted a finite number for row 9, got inf: 'third'"),
        ("return ['1.0', 2.0, 3.0]", "wanted a finite number for row 4, got '1.0': 'first'"),
        ("return [1.0, None, 3.0]", "wanted a finite number for row 7, got None"),
        ("return [1.0, [2.0], 3.0]", "wanted a finite number for row 7, got [2.0]"),
        ("return [1.0, 2.0]", "wanted 3 scores, one a completion, got 2"),
        ("return []", "wanted 3 scores, one a completion, got 0"),
        ("return [1 / (len(text) - 2) for text in completions]", "raised ZeroDivisionError: division by zero on row 7: "
         "'second'"),
        ("return None", "raised TypeError"),
        ("return 1.0", "raised TypeError"),
    ],
)  # fmt: skip
def test_a_program_that_gives_no_numbers_is_blamed_with_the_row(tmp_path, body, message):
    with pytest.raises(StageError) as caught:
        programs(tmp_path, body)(ROWS, TEXTS)
    assert str(caught.value).startswith("reward judge:score") and message in str(caught.value)


def test_what_would_fail_at_once_is_refused_before_anything_trains(world, tmp_path):
    path = source(tmp_path, "return completions")
    with pytest.raises(UserError, match=r"reward judge:score: wanted a finite number for row \d+, got 'A first try.'"):
        run(tmp_path / "run", **world.fields(programs={f"{path}:score": 1.0}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_checks_need_a_check_in_every_row():
    with pytest.raises(DataError, match="1 have none: 5"):
        Programs({"checks": 1.0}).check([*ROWS, {"row": 5, "prompt": "no check"}])


# Through the stage


def test_a_stage_can_do_with_programs_alone(world, tmp_path):
    path = source(tmp_path, "return [text.count('a') / 4 for text in completions]")
    ran = run(tmp_path / "run", **world.fields(reward=None, programs={f"{path}:score": 2.0, "checks": 0.5}))
    for point in ran.points():
        wanted = 2 * point["scores/judge:score"] + 0.5 * point["scores/checks"]
        assert point["objective/scores"] == pytest.approx(wanted, abs=1e-6)


def test_a_program_that_fails_midway_can_be_mended_and_the_stage_goes_on_to_the_same_bytes(world, tmp_path):
    """The fault lies outside the source, as when a service is away: the key stays, and so does what was done."""
    away = tmp_path / "away"
    path = source(
        tmp_path,
        f"import os\n    down = os.path.exists({str(away)!r}) and len(max(completions)) > 1\n"
        "    if down: raise OSError('nobody answers')\n"
        "    return [text.count('a') / 4 for text in completions]",
    )
    execution = Execution(threads=1, device="cpu", save_interval=1)
    fields = world.fields(total_episodes=16, programs={f"{path}:score": 1.0}, execution=execution)
    undisturbed = run(tmp_path / "undisturbed", **fields)
    real = Loop._rollout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_rollout", lambda self, n: (away.touch() if n == 2 else None, real(self, n))[1])
        with pytest.raises(StageError, match=r"reward judge:score raised OSError: nobody answers on row \d+"):
            run(tmp_path / "run", **fields)
    away.unlink()
    resumed = run(tmp_path / "run", **fields)
    assert same(resumed.adapter(), undisturbed.adapter()) and resumed.points() == undisturbed.points()
