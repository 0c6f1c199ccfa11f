"""From a finished run to a champion that the next recipe starts from, and back, through the command itself."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_a_merge_becomes_champion_through_its_gate_and_the_next_recipe_starts_from_it(first, shop, tmp_path):
    run, figures = first.json["run_id"], first.stage("eval_dpo")["metrics"]
    bound, name = figures["eval/win_rate_low"], ("--name", "assistant")
    failed = shop.align("promote", f"{run}:merge", "--as", "champion", *name, "--must", f"win_rate_low>{bound!r}")
    assert failed.status == 1 and "FAILED" in failed.out and "assistant: it has no champion yet" in failed.err
    must = ("--must", f"win_rate_low>={bound!r}", "--must", "check_rate>=champion")
    made = shop.align("promote", f"{run}:merge", "--as", "champion", *name, *must, "--json")
    assert made.status == 0, made.err
    assert set(made.json) == {
        "model", "alias", "promoted", "version", "registered", "key", "digest", "report", "conditions", "champion",
        "previous",
    }  # fmt: skip
    assert made.json["digest"] == first.stage("merge")["digest"] and made.json["version"] == "1"
    assert made.json["report"] == first.stage("eval_dpo")["key"]
    better = first.stage("eval_ppo")["metrics"]["eval/score_mean"] > figures["eval/score_mean"]
    other = shop.align("promote", f"{run}:merge_ppo", "--as", "champion", *name, "--must", "score_mean>champion")
    assert other.status == (0 if better else 1), other.err
    assert shop.align("promote", f"{run}:merge_ppo", "--as", "champion", *name).status == 0
    assert shop.align("rollback", *name, "--json").json == {"model": "assistant", "champion": "1", "previous": "2"}
    (tmp_path / "next.yaml").write_text("""
stages:
  base: {uses: base, source: "builtin:tiny-llama"}
  champion: {uses: base, source: "models:/assistant@champion"}
  adopted: {uses: adopt, base: base, source: "models:/assistant@champion", complete: true}
""")
    answer = shop.align("run", str(tmp_path / "next.yaml"), "--json")
    assert answer.status == 0, answer.err
    merged = (Path(first.stage("merge")["path"]) / "model.safetensors").read_bytes()
    for label in ("champion", "adopted"):
        assert (Path(answer.stage(label)["path"]) / "model.safetensors").read_bytes() == merged


def test_an_adapter_or_an_unknown_stage_is_refused_with_what_to_do(first, shop):
    run = first.json["run_id"]
    adapter = shop.align("promote", f"{run}:ppo", "--as", "champion")
    assert adapter.status == 2 and f"promote its merge, {run}:merge_ppo" in adapter.err
    assert shop.align("promote", f"{run}:mrge", "--as", "champion").status == 2
    assert shop.align("rollback", "--name", "nobody").status == 2
