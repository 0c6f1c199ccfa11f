"""What the shipped recipes promise: every method in the comparison, all measured alike, one SFT for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tasks.registry import STAGES, stage_class
from tasks.tuning import FromPolicy

PIPELINES = Path(__file__).parents[2] / "pipelines"


def stages(name: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((PIPELINES / name).read_text())["stages"]


def test_every_method_is_in_the_comparison_and_starts_from_the_one_sft():
    """A method that is added later must be compared too."""
    recipe = stages("compare.yaml")
    methods = {uses for uses in STAGES if issubclass(stage_class(uses), FromPolicy)}
    trained = {label: fields for label, fields in recipe.items() if fields["uses"] in methods}
    assert {fields["uses"] for fields in trained.values()} == methods
    assert {fields["policy"] for fields in trained.values()} == {"sft", "base"}
    assert [label for label, fields in trained.items() if fields["policy"] == "base"] == ["orpo"]
    assert [fields["policy"] for fields in recipe.values() if fields["uses"] == "best_of_n"] == ["sft"]


def test_all_are_evaluated_alike():
    recipe = stages("compare.yaml")
    reports = {fields["policy"]: fields for fields in recipe.values() if fields["uses"] == "evaluate"}
    tuned = {"sft", "dpo", "simpo", "kto", "orpo", "ppo", "rloo", "grpo", "best_sft"}
    assert set(reports) == {"base"} | tuned
    same = [
        {name: value for name, value in fields.items() if name not in ("policy", "reference", "against")}
        for fields in reports.values()
    ]
    assert all(fields == same[0] for fields in same)
    assert all(reports[policy]["against"] == "eval_sft" for policy in tuned - {"sft"})


def test_qlora_trains_on_4_bits_and_measures_both_merges():
    recipe = stages("qlora.yaml")
    assert recipe["sft"]["base"] == "base4" and recipe["base4"]["uses"] == "quantize"
    merges = {label: fields for label, fields in recipe.items() if fields["uses"] == "merge"}
    assert {fields.get("into", "original") for fields in merges.values()} == {"original", "dequantised"}
    evaluated = {fields["policy"] for fields in recipe.values() if fields["uses"] == "evaluate"}
    assert evaluated >= {"sft", "dpo", *merges}
