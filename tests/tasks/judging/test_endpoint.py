"""A judge over HTTP: what it is sent, what becomes of what it answers, and that no answer is bought twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from artifacts.errors import StageError
from artifacts.fingerprint import canonical
from artifacts.jsonl import read_jsonl
from artifacts.kinds import Report
from tests.conftest import ROOT
from tests.tasks.judging.judge_server import QUESTION, Reply, completion, longer

NOW = {"Retry-After": "0"}
KEY = "sk-" + "secret" * 4


def counted(rule, failing):
    """`rule`, but `failing` gives the first replies to each question; an exhausted one falls back on the rule."""
    seen: dict[tuple[str, ...], int] = {}

    def reply(*question):
        number = seen[question] = seen.get(question, 0) + 1
        return failing[number - 1] if number <= len(failing) else rule(*question)

    return reply


def test_each_pair_is_asked_about_in_both_orders_with_temperature_0(judging, served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = served(longer)
    judging(server, max_prompts=1, max_new_tokens=7).run()
    assert server.asked == ["p0|mine 0 is longer|theirs 0", "p0|theirs 0|mine 0 is longer"]
    body = {**server.bodies[0], "messages": None}
    assert body == {
        "model": "judge", "temperature": 0, "max_tokens": 7, "messages": None, "path": "/v1/chat/completions"
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_the_request_can_be_what_a_server_wants(judging, served, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = served(longer)
    request = {"max_tokens": None, "temperature": None, "max_completion_tokens": 9, "seed": 1}
    judging(server, max_prompts=1, request=request).run()
    assert server.bodies[0].keys() == {"model", "messages", "path", "max_completion_tokens", "seed"}
    assert "Authorization" not in server.headers[0]


def test_questions_are_asked_at_the_same_time_but_not_more_than_that(judging, served):
    gate = threading.Barrier(3)

    def together(prompt, first, second):
        if (prompt, first) != ("p0", "mine 0 is longer"):  # the first one goes alone
            gate.wait(timeout=20)
        return longer(prompt, first, second)

    server = served(together)
    assert judging(server, max_prompts=5, requests=3).run()["judge/win_rate"] == 1
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    "failing",
    [
        [Reply(500, "oops", NOW), Reply(429, "slow down", NOW)],
        [Reply(503, "", NOW)] * 4,
        [Reply(408, "", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})],
    ],
    ids=["500 and 429", "503 four times", "a date to wait for"],
)
def test_what_passes_is_waited_for(judging, served, failing):
    server = served(counted(longer, failing))
    metrics = judging(server, max_prompts=2).run()
    assert (metrics["judge/win_rate"], metrics["judge/failed"]) == (1, 0)
    assert len(server.bodies) == 4 * (len(failing) + 1)


def run_alone(stage):
    """The stage in a process of its own, as the flow starts it."""
    stage.draft.mkdir(exist_ok=True)
    path = stage.draft / "job.json"
    path.write_text(stage.job().model_dump_json())
    return subprocess.Popen([sys.executable, "-m", "tasks", str(path)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


class Hold:
    """Lets some questions through; the next one waits until it is let go."""

    def __init__(self, free: int) -> None:
        self.free, self.reached, self.released = free, threading.Event(), threading.Event()

    def __call__(self, *question):
        self.free -= 1
        if self.free < 0:
            self.reached.set()
            assert self.released.wait(timeout=60)
        return longer(*question)


def test_killed_midway_it_asks_only_for_what_is_missing(judging, served):
    hold = Hold(5)
    server = served(hold)
    stage = judging(server, requests=1)
    process = run_alone(stage)
    assert hold.reached.wait(timeout=60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold.released.set()
    kept = stage.draft / "work" / "answers.jsonl"
    assert len(read_jsonl(kept)) == 5
    with kept.open("a") as file:
        file.write('{"row": 3, "swapp')  # as a crash amid a write leaves it
    before = server.asked[:5]
    server.bodies.clear()
    server.rule = longer
    again = run_alone(stage)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0, out
    assert "5 of 20 answers were given before" in out
    assert len(server.asked) == 15 and not set(server.asked) & set(before)
    assert stage.verdicts() == ["win"] * 10


def test_asked_to_end_it_takes_the_answer_that_is_on_its_way(judging, served):
    hold = Hold(5)
    server = served(hold)
    stage = judging(server, requests=1)
    process = run_alone(stage)
    assert hold.reached.wait(timeout=60)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    hold.released.set()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "6 of 20 answers are kept" in out
    assert len(read_jsonl(stage.draft / "work" / "answers.jsonl")) == 6


@pytest.mark.parametrize("status", [200, 401, 500])
def test_the_key_is_in_no_file_and_in_no_message_whatever_the_server_repeats(judging, served, monkeypatch, status):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    said = json.dumps(completion(f"your key is {KEY}"))
    rule = lambda *question: Reply(status, said, NOW) if question[0] == "p1" else longer(*question)  # noqa: E731
    stage = judging(served(rule), api_key_env="JUDGE_KEY", max_lost=0.1)
    process = run_alone(stage)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (1 if status == 401 else 0), out
    assert KEY not in out
    files = [path for path in stage.draft.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not [path for path in files if KEY in path.read_text()]
    assert ("$JUDGE_KEY" in "".join(path.read_text() for path in files)) == (status != 500)


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(judging, served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(StageError, match=r"\$OPENAI_API_KEY holds a blank") as caught:
        judging(served(longer)).run()
    assert KEY not in str(caught.value)


def test_where_the_judge_is_and_its_key_make_no_other_verdicts_but_all_else_does(judging):
    def identity(**fields):
        common = {"endpoint": "http://one/v1", "model": "judge", "question": QUESTION}
        stage = judging(**reports, **{**common, **fields}).job().stage()
        return canonical(stage.identity())

    reports = {name: Report(key=name, path=Path(name)) for name in ("report", "against")}
    same = [{}, {"endpoint": "https://two:99/api"}, {"api_key_env": "OTHER"}, {"max_lost": 1.0}]
    others = [{"model": "other"}, {"question": QUESTION + "?"}, {"max_prompts": 3}, {"request": {"seed": 1}}]
    assert len({identity(**fields) for fields in same}) == 1
    assert len({identity(**fields) for fields in [{}, *others]}) == 5


def test_equal_answers_are_equal_bytes_in_row_order_whatever_comes_first(judging, served):
    server = served(longer)
    stage = judging(server, requests=1)
    stage.run()
    one = {path.name: path.read_bytes() for path in (stage.draft / "out").iterdir()}
    (stage.draft / "work" / "answers.jsonl").unlink()
    delays = iter([0.05, 0.0, 0.03, 0.01] * 5)

    def late(*question):
        time.sleep(next(delays))
        return longer(*question)

    server.rule = late
    stage.execution = stage.execution.model_copy(update={"requests": 8})
    stage.run()
    assert {path.name: path.read_bytes() for path in (stage.draft / "out").iterdir()} == one
    assert [line["row"] for line in read_jsonl(stage.draft / "out" / "verdicts.jsonl")] == list(range(1, 11))
