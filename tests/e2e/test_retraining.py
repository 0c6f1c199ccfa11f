"""What data teaches changes, and what is retrained with it: a first champion, nothing new, a better one, back, a worse.

What the data teaches decides who wins: completions in lower case pass the held-out checks, others do not.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from tests.conftest import write_rows
from tests.e2e.conftest import Answer, Shop
from tests.e2e.prefect_server import Prefect

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RECIPE = """
name: assistant
execution: {threads: 1}
stages:
  base: {uses: base, source: "builtin:tiny-llama"}
  rows: {uses: data, base: base, form: demonstrations, source: rows.jsonl}
  pairs: {uses: data, base: base, form: preferences, source: pairs.jsonl, test_source: held_out.jsonl}
  sft: {uses: sft, base: base, data: rows, lora: null, learning_rate: 1.0e-2, epochs: 8, eval_rows: 0}
  eval: {uses: evaluate, policy: sft, data: pairs, max_new_tokens: 4}
"""
LOG = logging.getLogger("retraining")
WORDS = [start + end for start in "bdfghk" for end in ("an", "el", "ir", "ot")]
FIRST = ("--must", "check_rate>=champion", "--json")
"""The gate of a first champion, which has nobody to win over."""


class Retraining:
    """A recipe whose data changes."""

    def __init__(self, shop: Shop, server: Prefect, folder: Path) -> None:
        self.shop, self.server, self.recipe = shop, server, folder / "assistant.yaml"
        self.recipe.write_text(RECIPE)
        asked = [{"prompt": f"Say {word}.", "chosen": "ok", "rejected": "NO"} for word in WORDS]
        write_rows(folder / "pairs.jsonl", asked)
        held_out = [{**row, "prompt": row["prompt"].upper(), "check": {"kind": "lowercase"}} for row in asked]
        write_rows(folder / "held_out.jsonl", held_out)

    def teach(self, completion: str) -> None:
        """Let the data be such that this is answered to everything."""
        rows = [{"prompt": f"Say {word}.", "completion": completion} for word in WORDS]
        write_rows(self.recipe.parent / "rows.jsonl", rows)

    def __call__(self, *words: str) -> dict[str, Any]:
        answer = self.shop.align("retrain", str(self.recipe), *words)
        assert answer.status == 0, answer.err
        LOG.info(answer.json["said"])
        return answer.json

    def align(self, *words: str) -> Answer:
        return self.shop.align(*words)

    @property
    def store(self) -> set[str]:
        return {path.name for path in (self.shop.home / "store").iterdir()}

    @property
    def aliases(self) -> dict[str, str]:
        found = MlflowClient(f"sqlite:///{self.shop.home / 'mlflow.db'}").get_registered_model("assistant").aliases
        return {alias: str(number) for alias, number in found.items()}

    @property
    def flow_run(self) -> dict[str, Any]:
        """The newest retraining that Prefect has."""
        ours = {"flows": {"name": {"any_": ["align-retrain"]}}, "sort": "START_TIME_DESC", "limit": 1}
        return dict(self.server.call("/flow_runs/filter", ours)[0])


@pytest.fixture(scope="module")
def retrain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retraining]:
    folder = tmp_path_factory.mktemp("retraining")
    shop = Shop(folder / "shop")
    (folder / "shop").mkdir()
    (folder / "project").mkdir()
    server = Prefect(dict(shop.environment))
    server.start()
    shop.environment["PREFECT_API_URL"] = server.api
    yield Retraining(shop, server, folder / "project")
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def first(retrain: Retraining) -> dict[str, Any]:
    retrain.teach("NO")
    return retrain(*FIRST)


@pytest.fixture(scope="module")
def better(retrain: Retraining, first: dict[str, Any]) -> dict[str, Any]:
    retrain.teach("ok")
    return retrain("--json")


def test_the_first_that_passes_is_champion(retrain, first):
    assert first["outcome"] == "promoted" and first["version"] == first["champion"] == "1"
    assert first["conditions"][0]["wanted"] is None and retrain.aliases == {"champion": "1"}


def test_with_nothing_new_nothing_is_trained_and_it_says_which_champion_since_when(retrain, first):
    before, began = retrain.store, time.monotonic()
    again = retrain(*FIRST)
    took = time.monotonic() - began
    assert again["outcome"] == "unchanged" and again["key"] == first["key"] and again["when"] == first["when"]
    assert again["said"].endswith(f"is version 1, the champion of assistant, since {first['when']}")
    assert retrain.store == before and again["run_id"] is None
    assert took < 60, "with the start of Python and Prefect, which is nearly all of it"


def test_better_data_is_trained_on_measured_beside_the_champion_and_promoted(retrain, first, better):
    assert better["outcome"] == "promoted" and retrain.aliases == {"champion": "2", "previous": "1"}
    (gate,) = better["conditions"]
    assert gate["condition"] == "win_rate_low > 0.5" and gate["got"] > 0.9
    shown = retrain.align("show", better["run_id"], "--json").json
    made = {stage["name"]: stage for stage in shown["stages"]}
    assert set(made) == {"base", "rows", "pairs", "sft", "champion", "eval_champion", "eval"}
    assert made["eval_champion"]["metrics"]["eval/check_rate"] < 0.1 < made["eval"]["metrics"]["eval/check_rate"]
    assert retrain.align("plan", better["recipe"]).status == 0


def test_the_page_says_what_was_decided_and_prefect_hears_of_the_new_champion(retrain, better):
    run = retrain.flow_run
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Promoted")
    found = retrain.server.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    decision = next(one for one in found if one["key"] == "decision")
    assert (
        "| `win_rate_low > 0.5` | 0.5 |" in decision["data"] and "align rollback --name assistant" in decision["data"]
    )
    wanted = {"filter": {"event": {"name": ["align.champion.changed"]}}}
    events = retrain.server.call("/events/filter", wanted)["events"]
    assert {"model": "assistant", "champion": "2", "previous": "1", "by": "promote"} in [
        one["payload"] for one in events
    ]


def test_what_was_rolled_back_is_not_promoted_again(retrain, better):
    assert retrain.align("rollback", "--name", "assistant", "--json").json["champion"] == "1"
    try:
        again = retrain("--json")
        assert again["outcome"] == "unchanged" and "has been rolled back since" in again["said"]
        assert retrain.aliases["champion"] == "1"
    finally:
        assert retrain.align("rollback", "--name", "assistant").status == 0


def test_worse_data_leaves_the_champion_and_the_condition_that_failed_is_named_with_its_figures(retrain, better):
    retrain.teach("No, NO")
    kept = retrain("--json")
    assert (
        kept["outcome"] == "kept" and kept["version"] == "3" and retrain.aliases == {"champion": "2", "previous": "1"}
    )
    assert kept["said"].startswith(
        "kept: version 2 stays champion of assistant, not version 3: win_rate_low > 0.5 failed"
    )
    assert kept["conditions"][0]["got"] < 0.1
    about = MlflowClient(f"sqlite:///{retrain.shop.home / 'mlflow.db'}").get_model_version("assistant", "3").description
    assert "Did not become `champion`" in about
    assert retrain.flow_run["state_name"] == "Kept"
    before = retrain.store
    again = retrain("--json")
    assert again["outcome"] == "unchanged" and f"was kept out on {kept['when']}" in again["said"]
    assert retrain.store == before


def test_a_base_whose_weights_changed_is_trained_anew_and_one_that_did_not_is_not(retrain, better):
    """Under the same name, as a folder that somebody fills again."""
    (made,) = (retrain.shop.home / "store").glob("base-*/out")
    base = retrain.recipe.parent / "base"
    shutil.copytree(made, base)
    named = ("base.source=base", "--json")
    retrain(*named)
    again = retrain(*named)
    assert again["outcome"] == "unchanged"
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").chmod(0o644)
    save_file({name: 1.01 * each for name, each in weights.items()}, base / "model.safetensors", {"format": "pt"})
    after = retrain(*named)
    assert after["outcome"] != "unchanged" and after["key"] != again["key"]
    stages = {
        stage["name"]: stage["status"] for stage in retrain.align("show", after["run_id"], "--json").json["stages"]
    }
    assert (stages["base"], stages["rows"], stages["sft"]) == ("ran", "ran", "ran")


def test_a_champion_of_another_base_is_refused_before_anything_trains(retrain, better):
    before = retrain.store
    answer = retrain.align("retrain", str(retrain.recipe), "base.source=builtin:tiny-gpt2")
    assert answer.status == 2 and "assistant version 2, the champion, is not from the base" in answer.err
    assert {name.partition("-")[0] for name in retrain.store - before} <= {"base", "adopt"}
