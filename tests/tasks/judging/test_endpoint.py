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
from tests.e2e.servers import free_port
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


def test_a_pair_without_an_answer_is_counted_as_failed_and_left_out(judging, served):
    def rule(prompt, first, second):
        if prompt == "p4":
            return Reply(400, "too long")
        return Reply(500, "", NOW) if (prompt, first) == ("p7", "theirs 7") else longer(prompt, first, second)

    server = served(rule)
    stage = judging(server, max_lost=0.2)
    metrics = stage.run()
    assert stage.verdicts() == ["win"] * 4 + ["failed"] + ["win"] * 2 + ["failed"] + ["win"] * 2
    assert (metrics["judge/failed"], metrics["judge/pairs"], metrics["judge/win_rate"]) == (2, 8, 1)
    asked = [text.split("|")[0] for text in server.asked]
    assert asked.count("p4") == 2, "what is refused is not asked again"
    assert asked.count("p7") == 1 + 5


NONSENSE = {
    "prose": "I like both of them.",
    "two choices": "A\nB",
    "empty": "",
    "no text": Reply(200, json.dumps(completion(None))),
    "cut off": Reply(200, json.dumps(completion("A", finish_reason="length"))),
    "half a character": Reply(200, json.dumps(completion("\ud800"))),
    "no JSON": Reply(200, "A"),
    "other JSON": Reply(200, '{"choices": [], "error": "none"}'),
    "a list": Reply(200, "[1]"),
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_counted_and_never_guessed(judging, served, said):
    server = served(lambda *question: said if question[0] == "p3" else longer(*question))
    stage = judging(server)
    metrics = stage.run()
    assert stage.verdicts() == ["win"] * 3 + ["nonsense"] + ["win"] * 6
    assert (metrics["judge/nonsense"], metrics["judge/pairs"]) == (1, 9)
    assert len(server.bodies) == 20


def test_too_much_nonsense_fails_the_stage_early_shows_an_answer_and_keeps_the_others(judging, served):
    good = {"p1", "p2"}
    server = served(lambda *question: longer(*question) if question[0] in good else "I can't say.")
    stage = judging(server, requests=1)
    with pytest.raises(StageError) as caught:
        stage.run()
    assert str(caught.value) == (
        "too many of 10 pairs can't be judged (max_lost 10%): nonsense for 2, such as row 1: \"I can't say.\". The "
        "answers that could be read are kept: run the same command again to ask for the others"
    )
    assert len(server.bodies) == 7, "two of p0, p1 and p2 each, and the first of p3 was one too many"
    assert not list((stage.draft / "out").iterdir())
    server.rule = longer
    server.bodies.clear()
    assert stage.run()["judge/win_rate"] == 1
    assert len(server.bodies) == 16, "all but the four that were understood"


def test_more_may_be_lost_if_the_user_says_so_and_nothing_is_bought_twice(judging, served):
    server = served(lambda *question: "?" if question[0] in ("p2", "p5") else longer(*question))
    stage = judging(server, requests=1)
    with pytest.raises(StageError, match="nonsense for 2"):
        stage.run()
    generous = judging(server, **{**stage.fields, "max_lost": 0.2})
    server.bodies.clear()
    assert generous.run()["judge/nonsense"] == 2
    assert len(server.bodies) == 12, "all but those of p0, p1, p3 and p4, which came before the second nonsense"


def test_an_endpoint_that_is_down_is_said_at_once(judging):
    port = free_port()
    stage = judging(endpoint=f"http://127.0.0.1:{port}/v1", model="judge")
    started = time.monotonic()
    with pytest.raises(StageError, match=rf"no answer from http://127.0.0.1:{port}/v1/chat/completions \(.*refused"):
        stage.run()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("host", ["nobody.invalid", "a..b"])
def test_so_is_a_host_that_does_not_exist(judging, host):
    with pytest.raises(StageError, match="start it or correct `endpoint`"):
        judging(endpoint=f"http://{host}/v1", model="judge").run()


def test_an_endpoint_that_goes_away_midway_keeps_what_it_said(judging, served):
    server = served(longer)
    stage = judging(server, requests=1, max_lost=0.0)
    rule = server.rule

    def goes(prompt, first, second):
        return Reply(502, "gone", NOW) if prompt == "p6" else rule(prompt, first, second)

    server.rule = goes
    with pytest.raises(StageError, match=r"no answer for 1, such as row 7: .* says 502: gone"):
        stage.run()
    server.rule = rule
    server.bodies.clear()
    assert stage.run()["judge/win_rate"] == 1
    assert {text.split("|")[0] for text in server.asked} == {"p6", "p7", "p8", "p9"}


@pytest.mark.parametrize("status", [401, 402, 404, 307])
def test_what_no_patience_helps_ends_the_stage_after_one_question(judging, served, status, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    elsewhere = served(longer)
    server = served(lambda *question: Reply(status, "no such model", {"Location": elsewhere.url}))
    with pytest.raises(StageError, match=f"says {status}: no such model") as caught:
        judging(server).run()
    assert len(server.bodies) == 1 and not elsewhere.bodies
    assert ("$OPENAI_API_KEY, which is not set" in str(caught.value)) == (status == 401)


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
