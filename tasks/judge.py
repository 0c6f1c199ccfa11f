"""A judge's verdicts on two policies' completions of the same held-out prompts.

The judge is a model behind an OpenAI-compatible endpoint, or one of the recipe's own. It is asked about each pair
twice, with the completions in either order, because judges prefer the first (Zheng et al. 2023, arXiv:2306.05685,
section 3.3): a win counts only if both orders agree, anything else is a tie. A judge is to be judged too: how often it
decides as the reward model and the rows' checks do stands beside what it decides. The figures, `judge/*`, are listed in
tasks/judging/verdicts.py. Of a conversation a judge sees the last turn, which is what a report holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator, model_validator

from artifacts.errors import StageError
from artifacts.fingerprint import canonical
from artifacts.kinds import Adapter, Artifact, Model, Report, Verdicts
from tasks.context import Context
from tasks.judging.answers import Answers
from tasks.judging.pairs import PLACES, QUESTION, Pair, paired
from tasks.judging.verdicts import Judged, both_answers, figures, verdict
from tasks.memory.adapted import Adapted
from tasks.memory.parts import Memory
from tasks.memory.reading import judge
from tasks.rendering import Template
from tasks.shape import ModelShape
from tasks.stage import Outside, Stage, Terms

LETTERS_A_TOKEN = 4
"""Of English, about: how long a question is before any tokenizer has seen it."""


class Judge(Stage):
    """Asks which completion is better, of `report` or of `against`, on the prompts that both have."""

    seeded: ClassVar[bool] = False
    goes_on_from: ClassVar[str] = "answers.jsonl"
    outside: ClassVar[Mapping[str, Outside]] = {
        "endpoint": "endpoint", "api_key_env": "variable", "max_lost": "nothing",
    }  # fmt: skip
    """Where the judge is, and how much may be lost on the way: neither changes a verdict, and verdicts cost money."""

    report: Report
    against: Report
    policy: Model | None = None
    """Judges in place of an endpoint: of A and B the likelier next token."""
    endpoint: str | None = None
    """The URL of an OpenAI-compatible API, up to and with `/v1`. Where the judge is, not who: no part of the key."""
    model: str | None = Field(None, min_length=1)
    """The model's name there."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the API key, if one is needed. Neither name nor value is part of the key."""
    question: str = QUESTION
    """What the judge is asked; `{prompt}`, `{first}` and `{second}` are filled in. An answer is A, B or tie, on a line
    of its own."""
    max_new_tokens: int = Field(512, ge=1)
    """Tokens in an endpoint's answer; one that is cut off is nonsense."""
    request: dict[str, JsonValue] = Field({})
    """More fields of the request to an endpoint, or others than `temperature: 0` and `max_tokens`; null leaves one
    out."""
    template: Template = "chat"
    """How the question is rendered for `policy`: its base's chat template, or the `### Instruction:` text."""
    batch_size: int = Field(8, ge=1)
    """Questions in a pass of `policy`. A field, since padding may move the last bits."""
    max_prompts: int | None = Field(None, ge=1)
    """Use only the first so many prompts that both reports have."""
    max_lost: float = Field(0.1, ge=0, le=1)
    """The share of the pairs asked about that may be without a verdict before the stage fails. No part of the key, so
    that raising it buys no answer twice."""

    def output(self, key: str, path: Path) -> Artifact:
        return Verdicts(key=key, path=path)

    def computes(self) -> bool:
        return self.policy is not None

    def loaded(self) -> Model | None:
        return self.policy

    def memory(self, terms: Terms) -> Memory | None:
        shape, asked = ModelShape.of(self.policy) if self.policy else None, terms.bounds.get(self.report.key)
        if self.policy is None or shape is None or asked is None:
            return None
        adapted = Adapted.start(shape, self.policy, None, terms.adapters)
        if adapted is None and isinstance(self.policy, Adapter):
            return None
        tokens = asked.longest_row + asked.supervised(1) + len(self.question) // LETTERS_A_TOKEN
        return judge(shape, adapted, terms.kind, self.batch_size, tokens)

    @field_validator("endpoint")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        """A URL is written down in many places, so nothing secret may be in it."""
        if url is None:
            return None
        wanted = "wanted a URL such as http://127.0.0.1:8000/v1"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(wanted) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError(wanted)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("wanted a URL without user, password and query; the key goes into the environment")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):  # a key would be written down in many places
            raise ValueError("wanted the name of an environment variable, in capitals; the key belongs in no recipe")
        return name

    @field_validator("question")
    @classmethod
    def _has_places(cls, question: str) -> str:
        if lacking := [place for place in PLACES if place not in question]:
            raise ValueError(f"wanted {', '.join(PLACES)} in it; {', '.join(lacking)} is missing")
        return question

    @field_validator("request")
    @classmethod
    def _leaves_ours(cls, request: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        if taken := sorted({"model", "messages", "n", "stream"} & request.keys()):
            raise ValueError(f"{', '.join(taken)} can't be set here; the stage writes it itself")
        return request

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.policy is None) == (self.endpoint is None) or (self.model is None) != (self.endpoint is None):
            raise ValueError("wanted one judge: either `endpoint` and `model`, or `policy`")
        strangers = ("max_new_tokens", "request") if self.endpoint is None else ("template", "batch_size")
        for name in strangers:
            if getattr(self, name) != type(self).model_fields[name].default:
                other = "policy" if self.endpoint is None else "endpoint"
                raise ValueError(f"{name} means nothing beside `{other}`; leave it out")
        return self

    def input_problem(self) -> str | None:
        if self.report.key == self.against.key:
            return "report and against are one evaluation; name two"
        return None

    def run(self, ctx: Context) -> dict[str, float]:
        pairs, apart = paired(self.report.path, self.against.path)
        pairs = pairs[: self.max_prompts]
        answers = Answers(ctx.work / "answers.jsonl")
        self._ask([pair for pair in pairs if not pair.identical], answers, ctx)
        judged = [(pair, verdict(pair, answers)) for pair in pairs]
        reports = [json.loads((one.path / "report.json").read_text()) for one in (self.report, self.against)]
        rewards = {report.get("reward") for report in reports}
        metrics = figures(judged, answers, one_reward=len(rewards) == 1 and None not in rewards)
        self._write(judged, answers, metrics, apart, ctx)
        return metrics

    def _ask(self, pairs: list[Pair], answers: Answers, ctx: Context) -> None:
        """Both questions of every pair that have no answer yet; raises StageError if too many pairs are lost."""
        questions = [question for pair in pairs for question in pair.questions(self.question)]
        if present := len(questions) - len(answers.missing(questions)):
            ctx.say(f"{present} of {len(questions)} answers were given before")
        if self.policy is not None:
            from tasks.judging.local_model import ask_model

            ask_model(self.policy, self.template, questions, answers, self.batch_size, ctx)
        else:
            from tasks.judging.asking import ask_endpoint
            from tasks.judging.endpoint import Endpoint

            assert self.endpoint is not None
            ours = {"model": self.model, "temperature": 0, "max_tokens": self.max_new_tokens}
            request = {name: value for name, value in {**ours, **self.request}.items() if value is not None}
            endpoint = Endpoint(self.endpoint, self.api_key_env, request)
            ask_endpoint(endpoint, questions, answers, lambda: self._lost_too_many(pairs, answers), ctx)
        if self._lost_too_many(pairs, answers):
            raise self._unjudged(pairs, answers)

    def _lost_too_many(self, pairs: list[Pair], answers: Answers) -> bool:
        lost = len(answers.nonsense().keys() | answers.unanswered().keys())
        return lost > self.max_lost * len(pairs) or 0 < lost == len(pairs)

    def _unjudged(self, pairs: list[Pair], answers: Answers) -> StageError:
        """What to say; nonsense is asked about again next time, since whoever answered may have been put right."""
        unanswered = answers.unanswered()
        nonsense = {row: repr(text[:200]) for row, text in answers.nonsense().items() if row not in unanswered}
        answers.forget_nonsense()
        said = [
            f"{what} for {len(lost)}, such as row {min(lost)}: {lost[min(lost)]}"
            for what, lost in (("nonsense", nonsense), ("no answer", unanswered)) if lost
        ]  # fmt: skip
        return StageError(
            f"too many of {len(pairs)} pairs can't be judged (max_lost {self.max_lost:.0%}): {'; '.join(said)}. "
            "The answers that could be read are kept: run the same command again to ask for the others"
        )

    def _write(self, judged: Judged, answers: Answers, metrics: dict[str, float], apart: int, ctx: Context) -> None:
        lines = []
        for pair, found in judged:
            said = [None if answer is None else answer.text for answer in both_answers(pair, answers)]
            lines.append({
                "row": pair.row, "prompt": pair.prompt, "completion": pair.mine["completion"],
                "other": pair.other["completion"], "answers": said, "verdict": found,
            })  # fmt: skip
        (ctx.out / "verdicts.jsonl").write_text("".join(canonical(line) + "\n" for line in lines))
        about = {
            "report": self.report.key, "against": self.against.key, "metrics": metrics, "only_in_one": apart,
            "judge": self.model if self.policy is None else self.policy.key,
            "answered_by": sorted({answer.model for answer in answers.given.values() if answer.model is not None}),
        }  # fmt: skip
        (ctx.out / "verdicts.json").write_text(json.dumps(about, indent=1, sort_keys=True))
        ctx.say("  ".join(f"{name.removeprefix('judge/')} {value:.3g}" for name, value in metrics.items()))
