"""A recipe as a challenge: the model that it makes, measured beside the champion on the same held-out rows. Pure.

Where `eval_dpo` measures what is to become champion, the recipe gets two stages more and one is changed:

    champion        {uses: adopt, base: base, source: "models:/assistant/3", complete: true}
    eval_champion   is as eval_dpo, but with `policy: champion`
    eval_dpo        as it was, but with `against: eval_champion`, so that its wins are over the champion
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from artifacts.fingerprint import digest
from artifacts.kinds import Model, Quantized
from pipelines.gate import FIGURES, Condition, decides
from pipelines.plan import Plan, Planned
from pipelines.problems import Problems, did_you_mean
from pipelines.wiring import check_stages, with_needs
from tasks.registry import stage_class

CHAMPION, EVAL_CHAMPION = "champion", "eval_champion"
NEEDS = {"score_mean": "reward", "kl_to_reference": "reference"}
"""Which input of an evaluation gives a figure."""


@dataclass(frozen=True)
class Challenger:
    """The stages of a plan that make a complete model, and measure it."""

    plan: Plan
    model: Planned
    report: Planned

    @classmethod
    def of(cls, plan: Plan, model: str = "", report: str = "") -> Challenger:
        """By their names in the recipe, or the last complete model that it makes and the only report of that.

        Raises UserError where there is no such stage, or a choice of reports.
        """
        challenger = _model(plan, model)
        return cls(plan, challenger, _report(plan, challenger, report))

    @property
    def base(self) -> Planned:
        """The stage whose model it was trained from, through whatever came between."""
        by_key = {planned.key: planned for planned in self.plan.stages}
        current = self.model
        while before := [one for one in current.stage.bound().values() if isinstance(one, Model)]:
            current = by_key[before[0].key]
        return current

    def question(self, champion: str | None, gate: Sequence[Condition]) -> str:
        """What a decision is about, as a digest: as long as that is the same, so is the decision.

        `champion` is the digest of its bytes. The report's key stands for held-out rows, judges and settings.
        """
        asked = {"model": self.model.key, "report": self.report.key, "champion": champion or "",
                 "gate": sorted(map(str, gate))}  # fmt: skip
        return digest(asked)

    def gate_problems(self, gate: Sequence[Condition], *, champion: bool) -> list[str]:
        """Why a gate could not be judged, as far as that is known before anything trains."""
        given = {*self.report.stage.bound(), *(["against"] if champion else [])}
        return [problem for one in gate if (problem := self._problem(one, given, champion)) is not None]

    def _problem(self, condition: Condition, given: Set[str], champion: bool) -> str | None:
        name, report = condition.metric, self.report.label
        if name not in FIGURES:
            return f"{condition}: there is no such figure{did_you_mean(name, FIGURES)}; there are {', '.join(FIGURES)}"
        wins = "against" in (decides(name) or ())
        if wins and not champion and "against" not in given:
            return (
                f"{condition}: there is no champion to win over, and {report} has no `against`; give the first one a "
                "gate without wins, such as check_rate>=0, or add `against`"
            )
        if wins and champion and condition.champion:
            return f"{condition}: wins are over the champion, which has none; wanted a number, as in {name}>0.5"
        lacking = next((one for figure, one in NEEDS.items() if name.startswith(figure) and one not in given), None)
        return None if lacking is None else f"{condition}: {report} measures that only with `{lacking}`; add it there"

    def recipe(self, source: str | None) -> Challenge:
        """The whole recipe with the champion at `source` in it; without a champion, as it was."""
        stages = located_stages(self.plan)
        champion = eval_champion = None
        if source is not None:
            champion, eval_champion = (_free(name, stages) for name in (CHAMPION, EVAL_CHAMPION))
            adopt = {"uses": "adopt", "base": self.base.label, "source": source, "complete": True}
            # Right after its base, so that one that does not fit is found out before anything else is made.
            stages = dict(_with_next(self.base.label, champion, adopt, stages))
            mine = stages[self.report.label]
            alike = {name: value for name, value in mine.items() if name not in ("policy", "against", "refresh")}
            stages[eval_champion] = {**alike, "policy": champion}
            mine["against"] = eval_champion
        recipe = self.plan.recipe
        execution = recipe.execution.model_dump(mode="json", exclude_defaults=True)
        whole = {"version": recipe.version, "name": recipe.name, "seed": recipe.seed, "execution": execution}
        return Challenge({**whole, "stages": stages}, champion, eval_champion)


@dataclass(frozen=True)
class Challenge:
    """A recipe, as YAML would give it, and its stages that take and measure the champion, if there is one."""

    recipe: dict[str, Any]
    champion: str | None
    eval_champion: str | None

    def only(self, *labels: str) -> dict[str, Any]:
        """The recipe with these stages and all that they need, and with no other branch."""
        stages = self.recipe["stages"]
        wiring, _ = check_stages(stages, Problems("the recipe with the champion"))
        wanted = with_needs(labels, {label: inputs.values() for label, inputs in wiring.items()})
        return {**self.recipe, "stages": {label: fields for label, fields in stages.items() if label in wanted}}


def located_stages(plan: Plan) -> dict[str, dict[str, Any]]:
    """A recipe's stages, with whole paths for files of which it said where they are from its own folder."""
    _, bare = check_stages(plan.recipe.stages, Problems(str(plan.recipe.path)))
    stages = {}
    for label, fields in plan.recipe.stages.items():
        cls = stage_class(fields["uses"])
        before, after = bare[label].settings(), plan[label].stage.settings()
        moved = {name: value for name, value in after.items() if value != before[name] and not _is_name(before[name])}
        stages[label] = {**(cls.spelled_out(fields) if moved else fields), **moved}
    return stages


def _is_name(source: Any) -> bool:
    """Whether it says what is meant wherever it is read: where a package lies here is nobody else's concern."""
    return isinstance(source, str) and source.startswith("package:")


def _model(plan: Plan, label: str) -> Planned:
    made = [each for each in _in_order(plan) if each.handle.kind == "checkpoint" and "source" not in each.stage.outside]
    names = [each.label for each in made]
    if not made:
        raise UserError(
            f"{plan.recipe.path}: makes no complete model; add `merge: {{uses: merge, adapter: ADAPTER, data: DATA}}`"
        )
    if label and label not in names:
        raise UserError(
            f"stage: wanted one that makes a complete model, {' or '.join(names)}, got {label!r}"
            + did_you_mean(label, names)
        )
    return plan[label or names[-1]]


def _report(plan: Plan, model: Planned, label: str) -> Planned:
    reports = [each for each in _in_order(plan) if each.handle.kind == "report"]
    for policy in (model.key, *_as_good_as(model)):
        found = [each.label for each in reports if each.stage.bound()["policy"].key == policy]
        if label in found or (len(found) == 1 and not label):
            return plan[label or found[0]]
        if len(found) > 1 and not label:
            raise UserError(f"report: {model.label} is evaluated more than once; wanted one of {', '.join(found)}")
    if label:
        raise UserError(f"report: wanted an evaluate stage that measures {model.label}, got {label!r}")
    raise UserError(
        f"{plan.recipe.path}: nothing measures {model.label}; add `eval: {{uses: evaluate, policy: {model.label}, "
        "data: DATA}`"
    )


def _as_good_as(model: Planned) -> list[str]:
    """The adapter that a merge put into the weights that it was trained on: the same policy up to rounding."""
    adapter = getattr(model.stage, "adapter", None)
    if adapter is None:
        return []
    across = getattr(model.stage, "into", "original") == "original" and isinstance(adapter.base, Quantized)
    return [] if across else [adapter.key]


def _in_order(plan: Plan) -> list[Planned]:
    """As the recipe has them."""
    labels = list(plan.recipe.stages)
    return sorted(plan.stages, key=lambda each: labels.index(each.label))


def _with_next(label: str, name: str, fields: dict[str, Any], stages: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The stages, with another one after that of this label."""
    for each, its in stages.items():
        yield each, its
        if each == label:
            yield name, fields


def _free(name: str, stages: Mapping[str, Any]) -> str:
    """`name`, or with a number if a stage has it."""
    return next(one for one in (name, *(f"{name}_{n}" for n in range(2, len(stages) + 3))) if one not in stages)
