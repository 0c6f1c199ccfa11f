"""The recipe behind a form: methods on one's own base and data, with what they need before and evaluations after.

What a method needs follows from the kinds of its inputs, so that a new one has a form without another line:

    a base          base       of the form
    a model         sft        on `instructions`; or the base itself, or a stage of an earlier run
    data            instructions, pairs, feedback: the form's files, as far as they are needed or given
    a reward model  reward     on `pairs`

With an earlier run, whatever of this it has is taken as it was there, so that it comes from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from artifacts.errors import UserError
from artifacts.kinds import Artifact, Checkpoint, Demonstrations, Feedback, Model, Preferences, RewardModel
from pipelines.problems import did_you_mean
from tasks.registry import STAGES, stage_class

Stages = dict[str, dict[str, Any]]
DATA: dict[type[Artifact], tuple[str, str]] = {
    Demonstrations: ("instructions", "demonstrations"), Preferences: ("pairs", "preferences"),
    Feedback: ("feedback", "feedback"),
}  # fmt: skip
"""For each kind of data the name of the stage that makes it, which its file has in a form too, and its rows' form."""


@dataclass(frozen=True)
class Form:
    """What every form asks for beside the settings of its methods."""

    base: str
    sources: Mapping[str, str]
    """Files by the stage that reads them: `instructions`, `pairs`, `feedback`; one that is left out is not needed."""
    split_pairs: bool = False
    """Whether the file for `feedback` holds pairs."""
    start: str = "sft"
    """What the methods start from: `sft`, `base`, or a stage of the earlier run."""
    weights: Literal["adapters", "all"] = "adapters"
    rank: int = 16
    """Of fresh adapters."""
    judged_by_reward: bool = True
    """Whether a reward model is trained to measure with where no method needs one."""
    held_out: int = 64
    """Prompts of the evaluation."""
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The stages of an earlier run's recipe."""


def methods() -> list[str]:
    """What has a form."""
    return [uses for uses in STAGES if stage_class(uses).shown]


def needed_data(uses: str) -> list[str]:
    """Which files a method can't do without, SFT before it and reward model included."""
    inputs = stage_class(uses).inputs().values()
    kinds = {each.kind for each in inputs if each.required or each.kind is RewardModel}
    if Model in kinds:  # which an SFT makes
        kinds.add(Demonstrations)
    if RewardModel in kinds:
        kinds.add(Preferences)
    return [label for kind, (label, _) in DATA.items() if kind in kinds]


def recipe_of(chosen: Mapping[str, Mapping[str, Any]], form: Form, *, name: str, seed: int = 0) -> dict[str, Any]:
    """The recipe, as YAML would give it, of methods with the settings in which they differ from their defaults.

    Raises UserError for what a method lacks.
    """
    drafted = _Draft(form)
    made = [
        drafted.method(uses, chosen[uses]) for uses in STAGES if uses in chosen
    ]  # an SFT before what starts from it
    drafted.evaluations(made, merged=len(chosen) == 1)
    return {"version": 1, "name": name, "seed": seed, "stages": drafted.stages}


class _Draft:
    """A recipe in the making; every method of it gives the label of a stage, which is there from then on."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.stages: Stages = {}

    def method(self, uses: str, settings: Mapping[str, Any]) -> str:
        inputs: dict[str, Any] = {}
        for name, wanted in stage_class(uses).inputs().items():
            if wanted.required or issubclass(wanted.kind, RewardModel):
                inputs[name] = self.needed(wanted.kind)
        label = uses if uses not in self.stages else f"{uses}_again"
        fresh = {"lora": self.lora()} if "policy" not in inputs or self.form.start == "base" else {}
        return self.add(label, {"uses": uses, **inputs, **fresh, **settings})

    def needed(self, kind: type[Artifact]) -> str:
        """A stage that makes this kind."""
        if issubclass(kind, Checkpoint):
            return self.stage("base", {"uses": "base", "source": self.form.base})
        if issubclass(kind, RewardModel):
            base, pairs = self.needed(Checkpoint), self.needed(Preferences)
            return self.stage("reward", {"uses": "reward", "base": base, "data": pairs, "lora": self.lora()})
        if issubclass(kind, Model):
            return self.start()
        return self.data(*DATA.get(kind, DATA[Preferences]))  # where any will do, prompts that the reward model knows

    def start(self) -> str:
        start = self.form.start
        if start == "base":
            return self.needed(Checkpoint)
        if start != "sft":
            return self.taken(start)
        base, data = self.needed(Checkpoint), self.needed(Demonstrations)
        return self.stage("sft", {"uses": "sft", "base": base, "data": data, "lora": self.lora()})

    def data(self, label: str, rows: str) -> str:
        if not self.form.sources.get(label) and self._before(label, {"uses": "data", "form": rows}) is None:
            raise UserError(f"{label}: wanted a file of {rows}, got none")
        split = {"split_pairs": True} if label == "feedback" and self.form.split_pairs else {}
        source = self.form.sources.get(label, "")
        fields = {"uses": "data", "base": self.needed(Checkpoint), "form": rows, "source": source, **split}
        return self.stage(label, fields)

    def stage(self, label: str, fields: dict[str, Any]) -> str:
        """As it was in the earlier run, if that has it; else as the form says."""
        before = self._before(label, fields)
        return self.taken(before) if before is not None else self.add(label, fields)

    def add(self, label: str, fields: dict[str, Any]) -> str:
        self.stages.setdefault(label, fields)
        return label

    def _before(self, label: str, fields: Mapping[str, Any]) -> str | None:
        """What the earlier run calls such a stage: by this name, else the only one that does the same."""
        alike = [
            name
            for name, stage in self.form.earlier.items()
            if stage["uses"] == fields["uses"] and stage.get("form") == fields.get("form")
        ]
        if label in alike:
            return label
        return alike[0] if len(alike) == 1 else None

    def taken(self, label: str) -> str:
        """A stage of the earlier run with all that it needs there."""
        if label not in self.form.earlier:
            hint = did_you_mean(label, self.form.earlier)
            raise UserError(f"start: wanted `sft`, `base`, or a stage of the earlier run, got {label!r}{hint}")
        stage = dict(self.form.earlier[label])
        for needed in _inputs(stage):
            self.taken(needed)
        return self.add(label, stage)

    def lora(self) -> dict[str, Any] | None:
        return None if self.form.weights == "all" else {"rank": self.form.rank, "alpha": 2 * self.form.rank}

    def evaluations(self, made: list[str], *, merged: bool) -> None:
        """Of the base, of what the methods started from, and of each method, one over the other."""
        policies = [label for label in made if "policy" in self.stages[label] or self.stages[label]["uses"] == "sft"]
        if not policies:
            return
        own = self.stages[policies[0]]["data"]
        data = self.needed(Preferences) if self.form.sources.get("pairs") or "pairs" in self.stages else own
        judge = {"reward": self.needed(RewardModel)} if self._has_judge() else {}
        alike = {"uses": "evaluate", "data": data, **judge, "max_prompts": self.form.held_out}
        base = self.needed(Checkpoint)
        self.add(f"eval_{base}", {**alike, "policy": base})
        for label in policies:
            start = self.stages[label].get("policy", base)
            if f"eval_{start}" not in self.stages:
                self.add(f"eval_{start}", {**alike, "policy": start, "reference": base, "against": f"eval_{base}"})
            policy = self._merge(label, data) if merged else label
            beside = {"reference": start, "against": f"eval_{start}"}
            self.add(f"eval_{label}", {**alike, "policy": policy, **beside})

    def _has_judge(self) -> bool:
        return "reward" in self.stages or (self.form.judged_by_reward and bool(self.form.sources.get("pairs")))

    def _merge(self, label: str, data: str) -> str:
        """Complete weights of an adapter; what trains all of them has them already."""
        if self.form.weights == "all" and self._starts_whole(label):
            return label
        return self.add("merge", {"uses": "merge", "adapter": label, "data": data})

    def _starts_whole(self, label: str) -> bool:
        """Whether what it starts from has all weights trained, so that there is no adapter to go on with."""
        stage = self.stages[label]
        start = stage.get("policy")
        return stage.get("lora") is None and (start is None or self._starts_whole(start))


def _inputs(stage: Mapping[str, Any]) -> list[str]:
    """The stages that a stage of a recipe names."""
    cls = stage_class(stage["uses"])
    spelled = cls.spelled_out(stage)
    return [spelled[name] for name in cls.inputs() if isinstance(spelled.get(name), str)]
