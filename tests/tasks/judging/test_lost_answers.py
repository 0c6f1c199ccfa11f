"""Answers of a judge that don't come or can't be read: counted, shown, and bought only once."""

from __future__ import annotations

import json
import time

import pytest

from artifacts.errors import StageError
from tests.e2e.servers import free_port
from tests.tasks.judging.judge_server import Reply, completion, longer

NOW = {"Retry-After": "0"}


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
    assert time.monotonic() - started < 10


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
