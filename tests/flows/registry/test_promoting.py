"""`align promote` and `align rollback`, against a real registry: only the training of what is promoted is left out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable

import pytest
from mlflow.tracking import MlflowClient

from flows.cli import main
from flows.commands.planning import Wanted, plan_of
from flows.records import find_record
from tests.e2e.servers import free_port
from tests.flows.conftest import aliases

GOOD = {"check_rate": 0.5, "win_rate": 0.6, "win_rate_low": 0.55, "win_rate_high": 0.65}
BETTER = {"check_rate": 0.75, "win_rate": 0.7, "win_rate_low": 0.65, "win_rate_high": 0.75}
WORSE = {"check_rate": 0.25, "win_rate": 0.5, "win_rate_low": 0.45, "win_rate_high": 0.55}


@pytest.fixture
def align(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit status, output and errors of a command."""

    def said(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(words)
        out, err = capsys.readouterr()
        return status, out, err

    return said


def count(registry: MlflowClient) -> int:
    return len(registry.search_model_versions("name = 'recipe'"))


def test_the_first_champion_is_a_version_that_says_what_made_it_and_how_it_was_measured(train, align, registry, store):
    run = train(GOOD)
    status, out, _ = align("promote", f"{run}:merge", "--as", "champion", "--must", "check_rate>=champion", "--json")
    said = json.loads(out)
    assert status == 0 and said["promoted"] and said["registered"] and said["champion"] == "1"
    assert said["conditions"] == [
        {"condition": "check_rate >= champion", "metric": "check_rate", "wanted": None, "got": 0.5, "passed": True}
    ]
    version = registry.get_model_version_by_alias("recipe", "champion")
    lineage = json.loads(version.tags["align.lineage"])
    assert [stage["name"] for stage in lineage] == ["base", "rows", "sft", "pairs", "dpo", "merge"]
    assert lineage[-1]["digest"] == version.tags["align.digest"] == said["digest"]
    assert version.tags["align.run_id"] == run and version.tags["align.recipe"] == "recipe"
    assert set(json.loads(version.tags["align.data"])) == {"rows", "pairs"}
    assert json.loads(version.tags["align.figures"]) == {**GOOD, "prompts": 1.0}
    assert f"Stage merge of run {run}, recipe recipe." in version.description
    assert "- win rate: 60.0%" in version.description and "there was no champion before" in version.description


def test_the_same_bytes_are_the_same_version_and_the_champion_before_stays_as_previous(train, align, registry):
    old, new = train(GOOD), train(BETTER, dpo__beta=0.2)
    for run, alias in ((old, "champion"), (new, "candidate"), (new, "champion")):
        status, out, _ = align("promote", f"{run}:merge", "--as", alias)
        assert status == 0
    assert "recipe: version 2 is champion, models:/recipe@champion; version 1 is `previous`" in out
    assert count(registry) == 2
    assert aliases(registry) == {"candidate": "2", "champion": "2", "previous": "1"}
    assert align("promote", f"{new}:merge", "--as", "champion")[0] == 0
    assert aliases(registry)["previous"] == "1", "a champion that stays is not its own predecessor"


def test_a_condition_that_fails_leaves_everything_as_it_was_and_shows_them_all(train, align, registry):
    old, new = train(GOOD), train({**WORSE, "loss": 2.0}, dpo__beta=0.2)
    assert align("promote", f"{old}:merge", "--as", "champion")[0] == 0
    must = ("--must", "check_rate>=champion-0.02", "--must", "win_rate_low>0.5", "--must", "loss<3")
    status, out, err = align("promote", f"{new}:merge", "--as", "champion", *must)
    assert status == 1
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["check_rate", ">=", "champion", "-", "0.02", "0.48", "0.25", "FAILED"],
        ["win_rate_low", ">", "0.5", "0.5", "0.45", "FAILED"],
        ["loss", "<", "3", "3", "2", "passed"],
    ]
    assert err == "error: not promoted: 2 of 3 conditions failed; recipe: version 1 stays champion\n"
    assert count(registry) == 1 and aliases(registry) == {"champion": "1"}
    status, out, _ = align("promote", f"{new}:merge", "--as", "champion", *must, "--json")
    said = json.loads(out)
    assert status == 1 and not said["promoted"] and said["version"] is None and said["champion"] == "1"


def test_a_failure_before_there_is_a_champion_makes_no_model(train, align, registry):
    status, _, err = align("promote", f"{train(WORSE)}:merge", "--as", "champion", "--must", "win_rate_low>0.5")
    assert status == 1 and "recipe: it has no champion yet" in err
    assert registry.search_registered_models() == []


def test_rollback_swaps_champion_and_previous_and_needs_both(train, align, registry):
    status, _, err = align("rollback")
    assert status == 2 and "has a champion" in err
    assert align("promote", f"{train(GOOD)}:merge", "--as", "champion")[0] == 0
    status, _, err = align("rollback")
    assert status == 2 and "nothing to roll back to: no champion came before version 1" in err
    assert align("promote", f"{train(BETTER, dpo__beta=0.2)}:merge", "--as", "champion")[0] == 0
    assert align("rollback")[1] == "recipe: version 1 is champion again; version 2 is `previous`\n"
    assert aliases(registry) == {"champion": "1", "previous": "2"}
    assert json.loads(align("rollback", "--json")[1]) == {"model": "recipe", "champion": "2", "previous": "1"}
    registry.create_registered_model("other")
    registry.create_model_version("other", "s3://elsewhere/model")
    registry.set_registered_model_alias("other", "champion", "1")
    status, _, err = align("rollback")
    assert status == 2 and "--name: wanted one of other, recipe" in err
    assert align("rollback", "--name", "recipe")[0] == 0


REFUSED = [
    (["RUN:dpo", "--as", "champion"], "RUN:dpo is an adapter, and only complete models are promoted; promote its "
                                      "merge, RUN:merge"),
    (["RUN:sft", "--as", "champion"], "add `merge: {uses: merge, adapter: sft, data: DATA}` to the recipe"),
    (["RUN:reward", "--as", "champion"], "such as merge, but this makes a reward_model"),
    (["RUN:eval", "--as", "champion"], "such as merge, but this makes a report"),
    (["RUN:mrge", "--as", "champion"], "has no stage 'mrge'"),
    (["RUN:merge", "--as", "champoin"], "wanted candidate or champion, got 'champoin'; did you mean 'champion'?"),
    (["RUN:merge", "--as", "previous"], "--as: wanted candidate or champion, got 'previous'"),
    (["RUN:merge", "--as", "champion", "--must", "chek_rate>0"], "chek_rate: no such figure in the report; did"),
    (["RUN:merge", "--as", "champion", "--must", "check_rate"], "--must: wanted a metric"),
    (["RUN:merge", "--as", "champion", "--report", "RUN:reward"], "--report RUN:reward: wanted an evaluate stage"),
    (["RUN:merge", "--as", "champion", "--name", "a/b"], "--name: wanted a name without"),
    (["RUN:base", "--as", "champion", "--must", "check_rate>0"], "no evaluate stage of this run measures it; add "
                                                                 "`{uses: evaluate, policy: base, data: DATA}`"),
    (["RUN:base", "--as", "champion", "--report", "RUN:eval"], "--report RUN:eval: it measures another policy"),
]  # fmt: skip


def test_what_is_wrong_with_a_request_is_said_and_changes_nothing(train, align, registry):
    run = train(GOOD)
    for words, message in REFUSED:
        status, out, err = align("promote", *(word.replace("RUN", run) for word in words))
        assert (status, out) == (2, "") and message.replace("RUN", run) in err, (words, err)
    assert registry.search_registered_models() == []


def test_figures_measured_otherwise_are_not_set_side_by_side(train, align, registry):
    old, new = train(GOOD), train(BETTER, dpo__beta=0.2, eval__max_new_tokens=16)
    assert align("promote", f"{old}:merge", "--as", "champion")[0] == 0
    status, _, err = align("promote", f"{new}:merge", "--as", "champion", "--must", "check_rate>=champion")
    assert status == 2 and "max_new_tokens 16 (the champion's: left out)" in err
    assert aliases(registry) == {"champion": "1"}
    assert align("promote", f"{new}:merge", "--as", "champion", "--must", "check_rate>=0.75")[0] == 0


def test_other_rows_for_training_do_not_keep_figures_apart_but_other_held_out_rows_do(train, align):
    old, new = train(GOOD), train(BETTER, pairs__source="more.jsonl")
    assert align("promote", f"{old}:merge", "--as", "champion")[0] == 0
    assert align("promote", f"{new}:merge", "--as", "champion", "--must", "check_rate>champion")[0] == 0
    train.held_out = [{**train.held_out[0], "prompt": "Say seven."}]
    status, _, err = align("promote", f"{train(BETTER)}:merge", "--as", "champion", "--must", "check_rate>=champion")
    assert status == 2 and "measured otherwise: held_out" in err


def test_a_champion_without_figures_is_said(train, align):
    run = train(GOOD)
    assert align("promote", f"{run}:base", "--as", "champion")[0] == 0
    status, _, err = align("promote", f"{run}:merge", "--as", "champion", "--must", "check_rate>champion")
    assert status == 2 and "check_rate: the champion has no such figure, only none" in err


def test_figures_that_someone_changed_in_the_registry_are_not_believed(train, align, registry):
    old, new = train(GOOD), train(BETTER, dpo__beta=0.2)
    assert align("promote", f"{old}:merge", "--as", "champion")[0] == 0
    registry.set_model_version_tag("recipe", "1", "align.figures", "good")
    status, _, err = align("promote", f"{new}:merge", "--as", "champion", "--must", "check_rate>champion")
    assert status == 2 and "recipe version 1: its tags align.figures and align.measured_on are not as they were" in err
    assert align("promote", f"{old}:merge", "--as", "champion")[0] == 0
    assert align("promote", f"{new}:merge", "--as", "champion", "--must", "check_rate>champion")[0] == 0


def test_of_several_evaluations_one_must_be_named(train, align, registry):
    again = {"uses": "evaluate", "policy": "merge", "data": "pairs", "max_new_tokens": 16}
    run = train(GOOD, eval_short=again)
    status, _, err = align("promote", f"{run}:merge", "--as", "champion")
    assert status == 2 and f"evaluated more than once; name one of {run}:eval, {run}:eval_short with --report" in err
    assert align("promote", f"{run}:merge", "--as", "champion", "--report", f"{run}:eval_short")[0] == 0
    assert "up to 16 tokens" in registry.get_model_version("recipe", "1").description


def test_the_adapters_evaluation_is_its_merges_too_unless_the_merge_left_four_bits_behind(train, align, registry):
    run = train(GOOD, eval__policy="dpo")
    assert align("promote", f"{run}:merge", "--as", "champion", "--must", "check_rate>0.4")[0] == 0
    assert "held-out prompts, before the merge, to which" in registry.get_model_version("recipe", 1).description
    four = {"base4": {"uses": "quantize", "base": "base"}, "sft__base": "base4"}
    for into, status in (("original", 2), ("dequantised", 0)):
        run = train(GOOD, eval__policy="dpo", merge__into=into, **four)
        done, _, err = align("promote", f"{run}:merge", "--as", "candidate", "--must", "check_rate>0.4")
        assert done == status and ("no evaluate stage of this run measures it" in err) == bool(status)
    status, _, err = align("promote", f"{run}:base4", "--as", "champion")
    assert status == 2 and "has its weights in 4 bits" in err


def test_a_model_is_named_by_its_key_and_its_report_is_found_in_any_run(train, align, store):
    run = train(GOOD)
    key = next(stage["key"] for stage in find_record(store.home, run).stages if stage["name"] == "merge")
    status, out, _ = align("promote", key[:10], "--as", "champion", "--must", "check_rate>0.4", "--json")
    assert status == 0 and json.loads(out)["key"] == key and json.loads(out)["model"] == "recipe"
    for path in (store.home / "runs").glob("*.json"):
        path.unlink()
    status, _, err = align("promote", key[:10], "--as", "champion")
    assert status == 2 and "name it with --name" in err
    assert align("promote", key[:10], "--as", "champion", "--name", "mine")[0] == 0


def test_what_was_tracked_offline_must_be_sent_first(train, align):
    run = train(GOOD, tracked=False)
    status, _, err = align("promote", f"{run}:merge", "--as", "champion")
    assert status == 2 and "does not have its files; `align sync` sends what was tracked offline" in err
    train.send()
    assert align("promote", f"{run}:merge", "--as", "champion")[0] == 0


def test_a_damaged_model_is_not_promoted(train, align, store):
    run = train(GOOD)
    (weights,) = store.home.glob("store/merge-*/out/model.safetensors")
    weights.unlink()
    status, _, err = align("promote", f"{run}:merge", "--as", "champion")
    assert status == 2 and "its output is damaged (model.safetensors is missing)" in err


def test_an_mlflow_that_does_not_answer_is_an_error_in_seconds(train, align, monkeypatch):
    run = train(GOOD)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    for words in (("promote", f"{run}:merge", "--as", "champion"), ("rollback",)):
        status, _, err = align(*words)
        assert status == 2 and "can't be used" in err and "--offline-tracking" not in err
    assert time.monotonic() - started < 60


def test_the_gate_holds_on_another_machine(train, align, home, tmp_path, monkeypatch):
    """The champion's figures come from the registry: the challenger's home knows nothing of it."""
    assert align("promote", f"{train(GOOD)}:merge", "--as", "champion")[0] == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    shutil.move(home / "store", tmp_path / "gone")
    shutil.rmtree(home / "tracking")
    run = train(WORSE, dpo__beta=0.2)
    status, out, err = align("promote", f"{run}:merge", "--as", "champion", "--must", "check_rate>=champion")
    assert status == 1 and out.split()[-3:] == ["0.5", "0.25", "FAILED"] and "version 1 stays champion" in err


def test_the_champion_is_a_base_and_can_be_adopted(train, align, store, write_recipe, home):
    run = train(GOOD)
    assert align("promote", f"{run}:merge", "--as", "champion")[0] == 0
    (folder,) = (home / "store").glob("merge-*/out")

    def keys(source: str) -> list[str]:
        recipe = {"stages": {
            "base": {"uses": "base", "source": source},
            "theirs": {"uses": "adopt", "base": "base", "source": source, "complete": True},
        }}  # fmt: skip
        path = write_recipe(recipe, name="next.yaml")
        return [each.key for each in plan_of(Wanted(path), store).stages]

    assert keys("models:/recipe@champion") == keys("models:/recipe/1") == keys(str(folder))
