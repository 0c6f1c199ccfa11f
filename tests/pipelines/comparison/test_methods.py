"""Policies that differ in the seed alone are one method, told by how they were made and never by their names."""

from __future__ import annotations

import pytest

from pipelines.comparison.lineage import Lineage
from pipelines.comparison.methods import methods_of


@pytest.fixture
def chain(shelf):
    """A base and data, an SFT for each seed, and a DPO with a seed and a beta on one of them."""
    base = shelf.made("base", "checkpoint", seed=None)
    data = shelf.made("data", "preferences", inputs={"base": base}, seed=0)

    def sft(seed):
        return shelf.made("sft", "adapter", inputs={"base": base, "data": data}, seed=seed)

    def dpo(policy, seed, **fields):
        return shelf.made("dpo", "adapter", inputs={"policy": policy, "data": data}, seed=seed, fields=fields)

    return shelf, data, sft, dpo


def test_other_seeds_of_the_same_chain_are_one_method_and_other_settings_are_not(chain):
    shelf, data, sft, dpo = chain
    start = sft(0)
    runs = {"dpo@seed=0": dpo(start, 0), "soft": dpo(start, 0, beta=0.01), "dpo@seed=1": dpo(start, 1)}
    reports = [shelf.report(name, key, [True], data=data) for name, key in runs.items()]
    found = methods_of(reports, Lineage(shelf.store))
    assert {method.name: [policy.name for policy in method.policies] for method in found} == {
        "dpo": ["dpo@seed=0", "dpo@seed=1"], "soft": ["soft"]
    }  # fmt: skip


def test_no_method_takes_the_place_of_another_whose_name_it_would_have(chain):
    shelf, data, sft, dpo = chain
    start = sft(0)
    runs = {"dpo_1": dpo(start, 1), "dpo_2": dpo(start, 2), "dpo": dpo(start, 0, beta=0.01)}
    reports = [shelf.report(name, key, [True], data=data) for name, key in runs.items()]
    found = methods_of(reports, Lineage(shelf.store))
    assert {method.name: len(method.policies) for method in found} == {"dpo": 2, "dpo (2)": 1}


def test_seeds_of_several_stages_are_dropped_from_a_name_as_well(chain):
    shelf, data, sft, dpo = chain
    names = [f"dpo@dpo.seed={seed},reward.seed=0" for seed in (0, 1)]
    reports = [shelf.report(name, dpo(sft(0), seed), [True], data=data) for seed, name in enumerate(names)]
    assert [method.name for method in methods_of(reports, Lineage(shelf.store))] == ["dpo"]


def test_runs_that_differ_in_the_recipes_seed_are_one_method_too(chain):
    shelf, data, sft, _ = chain
    names = ("first-run:sft", "second-run:sft")
    reports = [shelf.report(name, sft(seed), [True], data=data, seed=seed) for seed, name in enumerate(names)]
    assert [method.name for method in methods_of(reports, Lineage(shelf.store))] == ["sft"]


def test_a_seed_further_up_the_chain_counts_too(chain):
    shelf, data, sft, dpo = chain
    reports = [shelf.report(f"run {seed}", dpo(sft(seed), 0), [True], data=data) for seed in range(3)]
    (method,) = methods_of(reports, Lineage(shelf.store))
    assert method.name == "run 0" and len(method.policies) == 3  # names without a seed in them have nothing to drop


def test_the_reports_that_wins_were_counted_over_may_differ_in_seeds_as_well(chain):
    shelf, data, sft, dpo = chain
    reports = []
    for seed in (0, 1):
        start = sft(seed)
        over = shelf.report(f"sft_{seed}", start, [True], data=data)
        reports += [over, shelf.report(f"dpo_{seed}", dpo(start, 0), [True], data=data, against=over.key)]
    assert [method.name for method in methods_of(reports, Lineage(shelf.store))] == ["sft", "dpo"]


def test_one_policy_evaluated_with_several_seeds_was_still_made_once(chain):
    shelf, data, sft, _ = chain
    start = sft(0)
    passed = ([True, False], [True, True])
    reports = [shelf.report(f"RUN{i}:sft", start, one, data=data, seed=i) for i, one in enumerate(passed)]
    (method,) = methods_of(reports, Lineage(shelf.store))
    assert (len(method.policies), method.seeds) == (2, 1)
    assert method.spread("eval/check_rate") is None and method.outcomes() == {0: 1.0, 1: 0.0}


def test_what_the_store_has_lost_is_told_apart_by_key(chain):
    shelf, data, *_ = chain
    reports = [shelf.report(name, key, [True], data=data) for name, key in (("one", "a" * 64), ("two", "b" * 64))]
    assert len(methods_of(reports, Lineage(shelf.store))) == 2


def test_figures_over_seeds_by_hand(chain):
    shelf, data, sft, dpo = chain
    start = sft(0)
    passed = ([True, True, False, False], [True, False, False, False], [True, True, True, False])
    reports = [shelf.report(f"dpo@seed={i}", dpo(start, i), one, data=data) for i, one in enumerate(passed)]
    (method,) = methods_of(reports, Lineage(shelf.store))
    assert method.metrics["eval/check_rate"] == pytest.approx(0.5)
    assert method.spread("eval/check_rate") == pytest.approx(0.25)  # of 0.5, 0.25 and 0.75
    assert method.outcomes() == pytest.approx({0: 1.0, 1: 2 / 3, 2: 1 / 3, 3: 0.0})
    assert methods_of(reports[:1], Lineage(shelf.store))[0].spread("eval/check_rate") is None
