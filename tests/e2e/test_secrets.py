"""A run among secrets and with names that are traps: no secret is in anything that it leaves, no shell reads a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import write_rows
from tests.e2e.conftest import Answer, Shop
from tests.e2e.mlflow_servers import Mlflow
from tests.e2e.prefect_server import Prefect
from tests.tasks.judging.judge_server import QUESTION, JudgeServer, Reply, completion

pytestmark = pytest.mark.e2e
SECRETS = {
    name: f"planted-{name.lower().replace('_', '-')}-4f6c"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD",
                 "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_KEY")
}  # fmt: skip
IN_MLFLOW_URL, IN_PREFECT_URL = "planted-in-mlflow-url-4f6c", "planted-in-prefect-url-4f6c"
TRAPS = ("$(touch trapped)", "`touch trapped`", "; touch trapped", "<script>x</script>", "{key.__class__}")
SPY = """
import json, os, sys

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
WRITES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "sqlite3.connect": 0}
LOG = os.open(os.environ["SPY_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def spy(event, args):
    if event in STARTS:
        said = [event, *map(str, args[:2])]
    elif event in WRITES:
        said = ["write", os.path.abspath(os.fsdecode(args[WRITES[event]]))]
    elif event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR):
        said = ["write", os.path.abspath(os.fsdecode(args[0]))]
    else:
        return
    os.write(LOG, json.dumps(said).encode() + b"\\n")

sys.addaudithook(spy)
"""
"""Sees every process that any Python process of the run starts, and every file that it opens to write."""


class Ran(NamedTuple):
    """A finished run, the folder with all that it and its servers left, and what it started and wrote."""

    answer: Answer
    folder: Path
    started: list[list[str]]
    written: set[Path]
    judge: JudgeServer


def recipe(judge: str) -> dict[str, Any]:
    base, rows, first, second, verdicts = TRAPS
    evaluated = {"uses": "evaluate", "policy": base, "data": rows, "max_new_tokens": 4}
    return {"name": "$(touch trapped); `touch trapped` <script>", "stages": {
        base: {"uses": "base", "source": "builtin:tiny-llama"},
        rows: {"uses": "data", "base": base, "form": "demonstrations", "source": "rows.jsonl", "test_size": 0.5},
        first: evaluated,
        second: {**evaluated, "temperature": 1.0},
        verdicts: {"uses": "judge", "report": first, "against": second, "endpoint": judge, "model": "name",
                   "question": QUESTION},
    }}  # fmt: skip


def says_the_key(*parts: str) -> Reply:
    return Reply(200, json.dumps(completion(f"A\nyour key is {SECRETS['OPENAI_API_KEY']}")))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Prefect, Mlflow]]:
    """Servers that ask for no password, whose addresses hold one nevertheless."""
    shop = Shop(tmp_path_factory.mktemp("secrets"))
    prefect, mlflow = Prefect(dict(shop.environment)), Mlflow(shop.home.parent / "server")
    try:
        prefect.start()
        mlflow.start()
        yield shop, prefect, mlflow
    finally:
        prefect.stop()
        mlflow.stop()


@pytest.fixture(scope="module")
def ran(servers: tuple[Shop, Prefect, Mlflow], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    shop, prefect, mlflow = servers
    spy = tmp_path_factory.mktemp("spy")
    (spy / "sitecustomize.py").write_text(SPY)
    project = shop.home.parent / "project"
    for folder in (project, project.parent / "temporary"):
        folder.mkdir()
    write_rows(project / "rows.jsonl", [{"prompt": f"Say {i}.", "completion": f"{i}"} for i in range(8)])
    judge = JudgeServer(says_the_key)
    (project / "recipe.yaml").write_text(json.dumps(recipe(judge.url)))
    answer = shop.align(
        "run", str(project / "recipe.yaml"), "--json", "--until", TRAPS[-1], f"{TRAPS[2]}.batch_size=4",
        cwd=project, SPY_FILE=str(spy / "seen"), PYTHONPATH=f"{spy}:{shop.environment.get('PYTHONPATH', '')}",
        TMPDIR=str(project.parent / "temporary"), PYTHONDONTWRITEBYTECODE="1",
        TORCHINDUCTOR_CACHE_DIR="", TRITON_CACHE_DIR="",  # which torch gives a process that other tests were run in
        MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_URI=mlflow.uri.replace("://", f"://me:{IN_MLFLOW_URL}@"),
        PREFECT_API_URL=prefect.api.replace("://", f"://me:{IN_PREFECT_URL}@"), **SECRETS,
    )  # fmt: skip
    judge.close()
    seen = [json.loads(line) for line in (spy / "seen").read_text().splitlines()]
    written = {Path(words[0]) for event, *words in seen if event == "write"}
    return Ran(answer, shop.home.parent, [one for one in seen if one[0] != "write"], written, judge)


def test_it_runs_whatever_things_are_called(ran: Ran):
    assert ran.answer.status == 0, ran.answer.err
    assert set(ran.answer.statuses) == set(TRAPS) and set(ran.answer.statuses.values()) == {"ran"}
    assert ran.judge.headers[0]["Authorization"] == f"Bearer {SECRETS['OPENAI_API_KEY']}"


def test_no_secret_is_in_any_file_of_it_or_of_its_servers_or_in_what_it_says(ran: Ran):
    planted = [secret.encode() for secret in (*SECRETS.values(), IN_MLFLOW_URL, IN_PREFECT_URL)]
    files = [path for path in ran.folder.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name.endswith(("prefect.db", "db"))]) >= 2
    leaks = {str(path.relative_to(ran.folder)) for path in files for secret in planted if secret in path.read_bytes()}
    assert leaks == set()
    assert not any(secret.decode() in ran.answer.out + ran.answer.err for secret in planted)


def test_no_shell_reads_a_name(ran: Ran):
    """Every process is started with a list of words, and none of these is a name from the recipe."""
    assert any("tasks" in words for _, _, words in ran.started), "the trainers were seen"
    assert not any(event == "os.system" or "trapped" in f"{program} {words}" for event, program, words in ran.started)
    assert not list(ran.folder.rglob("trapped"))


def test_it_writes_nowhere_but_in_its_home_and_where_libraries_keep_their_own(ran: Ran):
    home = ran.folder / "align"
    assert any(path.parent == home / "store" for path in ran.written)
    others = [ran.folder / name for name in ("temporary", "prefect", ".cache", ".config")] + [Path("/dev")]
    assert sorted(path for path in ran.written if not any(path.is_relative_to(one) for one in (home, *others))) == []


def test_commands_that_fail_name_servers_without_their_passwords(servers, ran: Ran):
    shop, prefect, _ = servers
    nowhere = f"http://me:{IN_MLFLOW_URL}@127.0.0.1:9"
    for words in (["sync"], ["run", str(shop.home.parent / "project" / "recipe.yaml"), "--quiet"], ["doctor"]):
        answer = shop.align(
            *words, MLFLOW_TRACKING_URI=nowhere, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
            PREFECT_API_URL=prefect.api.replace("://", f"://me:{IN_PREFECT_URL}@"),
        )  # fmt: skip
        assert answer.status != 0 and "127.0.0.1:9" in answer.out + answer.err
        assert IN_MLFLOW_URL not in answer.out + answer.err and IN_PREFECT_URL not in answer.out + answer.err
