"""What made a policy: told from manifests, for methods that nobody here has heard of too."""

from __future__ import annotations

import pytest

from pipelines.comparison.lineage import History, Lineage


@pytest.fixture
def chains(shelf):
    """base -> sft -> dpo -> merge; a reward model; ppo on it; best_of_n by a program, and SFT on that. By name."""
    made = shelf.made
    base = made("base", "checkpoint", seed=None, seconds=20)
    rows = made("data", "demonstrations", inputs={"base": base}, seconds=3, fields={"form": "demonstrations"})
    pairs = made("data", "preferences", inputs={"base": base}, seconds=4, fields={"form": "preferences"})
    trained = {"cost/peak_memory_bytes": 2.0**31}
    sft = made("sft", "adapter", inputs={"base": base, "data": rows}, seconds=100,
               metrics={"cost/tokens": 5000, **trained}, points=[{"train/loss": 1.0}] * 12)  # fmt: skip
    reward = made(
        "reward", "reward_model", inputs={"base": base, "data": pairs}, seconds=90, metrics={"cost/tokens": 7000}
    )
    dpo = made("dpo", "adapter", inputs={"policy": sft, "data": pairs}, seconds=150,
               metrics={"cost/tokens": 9000, **trained})  # fmt: skip
    merge = made("merge", "checkpoint", inputs={"adapter": dpo, "data": pairs}, seconds=11, seed=None)
    ppo = made("ppo", "adapter", inputs={"policy": sft, "data": pairs, "reward": reward}, seconds=200,
               metrics={"cost/tokens": 1000})  # fmt: skip
    best = made("best_of_n", "demonstrations", inputs={"policy": sft, "data": pairs}, seconds=60,
                fields={"programs": {"checks": 1.0}})  # fmt: skip
    best_sft = made("sft", "adapter", inputs={"base": base, "adapter": sft, "data": best}, seconds=30,
                    metrics={"cost/tokens": 800})  # fmt: skip
    adopted = made("adopt", "adapter", inputs={"base": base}, seconds=5, seed=None)
    keys = {"base": base, "sft": sft, "dpo": dpo, "merge": merge, "ppo": ppo, "best_sft": best_sft, "adopted": adopted}
    lineage = Lineage(shelf.store)
    return {name: History(lineage, key) for name, key in keys.items()}


def test_costs_are_those_of_the_stage_that_trained_and_beside_it_of_all_before(chains):
    assert chains["dpo"].costs == {
        "cost/seconds": 150, "cost/tokens": 9000, "cost/peak_memory_bytes": 2**31,
        "cost/seconds_before": 100 + 20 + 3 + 4, "cost/tokens_before": 5000,
    }  # fmt: skip
    assert [(one.uses, one.seconds) for one in chains["dpo"].before] == [
        ("sft", 100), ("base", 20), ("data", 4), ("data", 3)
    ]  # fmt: skip


def test_a_merge_costs_what_its_adapter_cost(chains):
    assert chains["merge"].own == chains["dpo"].own
    assert chains["merge"].costs == chains["dpo"].costs


def test_a_reward_model_is_among_what_came_before(chains):
    assert chains["ppo"].costs["cost/seconds_before"] == 100 + 90 + 20 + 3 + 4
    assert chains["ppo"].costs["cost/tokens_before"] == 5000 + 7000


def test_what_was_not_trained_here_has_no_costs(chains):
    for name in ("base", "adopted"):
        assert (chains[name].own, chains[name].costs, chains[name].before) == (None, {}, [])
        assert (chains[name].rewards, chains[name].sampling, chains[name].stability) == ((), "no", None)


@pytest.mark.parametrize(
    ("name", "rewards", "sampling"),
    [
        ("sft", (), "no"),
        ("dpo", (), "no"),
        ("merge", (), "no"),
        ("ppo", ("model",), "while training"),
        ("best_sft", ("program",), "beforehand"),
    ],
)
def test_whether_a_reward_and_sampling_were_needed_follows_from_the_wiring(chains, name, rewards, sampling):
    assert (chains[name].rewards, chains[name].sampling) == (rewards, sampling)


def test_what_came_before_is_unknown_where_the_store_has_lost_some_of_it(chains, shelf):
    history = chains["ppo"]
    lost = shelf.store.folder("reward", history.own.payload["inputs"]["reward"])
    (lost / "manifest.json").unlink()
    found = History(Lineage(shelf.store), history.policy)
    assert "cost/seconds_before" not in found.costs and found.costs["cost/seconds"] == 200


def test_stability_is_of_the_stage_that_trained(chains):
    assert chains["sft"].stability is not None and chains["sft"].stability.phrases() == []
    assert chains["dpo"].stability is None  # it left no metrics


def test_a_policy_of_another_version_of_ours_has_no_estimate_and_that_is_all(shelf):
    key = shelf.made("sft", "adapter", fields={"a_field_of_old": 1}, metrics={"cost/tokens": 5})
    strange = shelf.made("a_method_since_removed", "adapter", metrics={"cost/tokens": 7})
    lineage = Lineage(shelf.store)
    assert "model/trainable" not in History(lineage, key).costs
    assert History(lineage, strange).costs["cost/tokens"] == 7 and History(lineage, strange).sampling == "no"


def test_seeds_anywhere_in_the_chain_and_nothing_else_are_left_out_of_account(shelf):
    def dpo(sft_seed, seed, **fields):
        sft = shelf.made("sft", "adapter", seed=sft_seed)
        return shelf.made("dpo", "adapter", inputs={"policy": sft}, seed=seed, fields=fields)

    keys = [dpo(0, 0), dpo(1, 7), dpo(2, 0, beta=0.2), dpo(3, 1, beta=0.2), dpo(4, 0, seed_of_data=1)]
    lineage = Lineage(shelf.store)
    first, second, third, fourth, fifth = (lineage.without_seeds(key) for key in keys)
    assert first == second and third == fourth and len({first, third, fifth}) == 3
