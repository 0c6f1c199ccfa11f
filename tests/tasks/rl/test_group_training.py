"""RLOO and GRPO through TRL's trainers, on models made in code."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pydantic import ValidationError

from tasks.context import Execution
from tasks.rl import group_trainer
from tasks.training.models import load_model
from tests.tasks.rl.group_runs import BOTH, bytes_of, logged, program

pytestmark = pytest.mark.usefixtures("one_thread")


# What comes out


@BOTH
def test_it_trains_the_policy_and_nothing_else(tiny, kitchen, base, sft, reward, uses, watch):
    made = tiny(uses, reward=reward.handle, learning_rate=1.01e-2)
    assert bytes_of(made) != (sft.handle.path / "adapter_model.safetensors").read_bytes()
    for name, handle in (("base", base.handle), ("sft", sft.handle), ("reward", reward.handle)):
        assert kitchen.store.damage(name, handle.key) is None
    assert sorted(path.name for path in made.handle.path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip
    trained, start = watch[0].model.state_dict(), load_model(sft.handle, "cpu").state_dict()
    for name, tensor in start.items():
        frozen = name.replace(".default.", ".ref.")
        assert torch.equal(trained[frozen], tensor), name
    assert any(not torch.equal(trained[name], tensor) for name, tensor in start.items() if ".default." in name)


@BOTH
def test_the_metrics_have_our_names_and_count_episodes(tiny, uses):
    made = tiny(uses, eval_rows=6)
    points = made.points()
    assert [point["step"] for point in points] == [0, 8, 16, 24, 24]
    assert set(points[0]["metrics"]) == set(points[-1]["metrics"]) == {"validation/score", "validation/length"}
    wanted = {
        "objective/kl", "objective/entropy", "objective/scores", "objective/scores_std", "objective/kl_coef",
        "objective/non_score_reward", "objective/rlhf_reward", "objective/equal_groups", "scores/scorers:letters",
        "completions/mean_length", "completions/max_length", "completions/clipped_ratio", "policy/entropy",
        "policy/clipfrac_avg", "train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second",
    }  # fmt: skip
    assert set(points[1]["metrics"]) == wanted
    assert logged(made, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)  # the start is its own reference
    assert logged(made, "policy/entropy")[0] == pytest.approx(math.log(259), abs=0.1)  # untrained
    assert made.metrics["validation/score_before"] == points[0]["metrics"]["validation/score"]
    assert made.metrics["validation/score"] == points[-1]["metrics"]["validation/score"]
    assert made.metrics["cost/tokens"] > 24


@BOTH
def test_some_of_what_it_writes_is_kept_to_be_read(tiny, uses):
    made = tiny(uses)
    lines = [json.loads(line) for line in (made.folder / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 8, 16, 16, 24, 24]
    assert set(lines[0]["sample"]) == {"prompt", "completion", "score", "truncated", "episodes"}


@BOTH
def test_the_score_rises(tiny, base, uses):
    """On a reward that is easy to learn: letters, of all bytes. A KL that costs much holds it back."""
    free, held = (
        tiny(uses, policy=base.handle, programs=program("readable"), kl_coef=coefficient, batch_size=32,
             total_episodes=320, learning_rate=1e-2)
        for coefficient in (0.01, 1.0)
    )  # fmt: skip
    scores = [logged(made, "objective/scores") for made in (free, held)]
    rise = [sum(one[-2:]) / 2 - sum(one[:2]) / 2 for one in scores]
    assert rise[0] > 0.2 > 0.1 > rise[1]
    assert free.metrics["objective/kl"] > 2 * held.metrics["objective/kl"]


def test_no_habit_of_the_checkpoint_gets_into_sampling(tiny, monkeypatch):
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    found, original, load = [], GenerationMixin._get_logits_processor, group_trainer.trainable

    def watched(self, *args, **kwargs):
        found.append(original(self, *args, **kwargs))
        return found[-1]

    def with_habits(*args):
        model, tokenizer = load(*args)
        habits = GenerationConfig(repetition_penalty=9.0, top_k=1, min_new_tokens=4, typical_p=0.1, eos_token_id=[1, 7])
        model.get_base_model().generation_config = habits
        return model, tokenizer

    monkeypatch.setattr(GenerationMixin, "_get_logits_processor", watched)
    monkeypatch.setattr(group_trainer, "trainable", with_habits)
    tiny("rloo", temperature=0.9, eval_rows=2)
    assert found and all([type(one).__name__ for one in each] == ["TemperatureLogitsWarper"] for each in found)


# Fields

CHANGES = {
    "num_generations": 2, "batch_size": 4, "total_episodes": 16, "learning_rate": 5e-3, "min_learning_rate": 5e-3,
    "warmup_ratio": 0.5, "kl_coef": 1.0, "cliprange": 1e-3, "num_iterations": 3, "temperature": 0.5,
    "max_new_tokens": 5, "max_grad_norm": 1e-3, "missing_eos_penalty": 2.0, "eval_rows": 2,
    "programs": program("letters", 2.0),
}  # fmt: skip
OWN = {"rloo": {"normalize_advantages": True}, "grpo": {"scale_rewards": "batch"}}


@pytest.mark.parametrize(
    ("uses", "field"),
    [(uses, field) for uses, own in OWN.items() for field in [*(CHANGES if uses == "rloo" else ["cliprange"]), *own]],
)
def test_every_field_changes_something(tiny, uses, field):
    common = {"num_iterations": 2, "programs": program("letters")}
    before = tiny(uses, **common)
    after = tiny(uses, **{**common, field: {**CHANGES, **OWN[uses]}[field]})
    known = [
        {name: value for name, value in made.metrics.items() if name != "cost/seconds"} for made in (before, after)
    ]
    assert bytes_of(before) != bytes_of(after) or known[0] != known[1]


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "bnpo"])
def test_grpos_losses_differ(tiny, loss):
    """Where completions differ in length; untrained, one in 259 tokens is EOS."""
    common = {"max_new_tokens": 60, "total_episodes": 16}
    one, other = (
        tiny("grpo", Execution(threads=2, micro_batch=4), **common, loss_type=kind) for kind in ("dapo", loss)
    )
    assert 0 < logged(one, "completions/clipped_ratio")[0] < 1
    assert bytes_of(one) != bytes_of(other)


# Rewards


@BOTH
def test_the_score_is_the_weighted_sum_less_the_penalty(tiny, reward, uses):
    programs = {**program("letters", 3.0), **program("length", -0.5)}
    made = tiny(uses, reward=reward.handle, reward_weight=2.0, programs=programs, missing_eos_penalty=0.25)
    for point in made.points():
        metrics = point["metrics"]
        wanted = 2 * metrics["scores/reward_model"] + 3 * metrics["scores/scorers:letters"]
        wanted -= 0.5 * metrics["scores/scorers:length"] + 0.25 * metrics["completions/clipped_ratio"]
        assert metrics["objective/scores"] == pytest.approx(wanted, abs=1e-4)


@BOTH
def test_checks_of_the_rows_are_a_reward(tiny, demonstrations, pairs, uses):
    made = tiny(uses, data=demonstrations.handle, programs={"checks": 1.0})
    assert set(logged(made, "scores/checks")) <= {i / 8 for i in range(9)}


# Micro-batches


@BOTH
def test_the_micro_batch_changes_only_rounding(tiny, uses):
    one, other = (tiny(uses, Execution(threads=2, micro_batch=size), total_episodes=8) for size in (8, 2))
    assert logged(one, "objective/scores") == logged(other, "objective/scores")
    assert logged(one, "train/grad_norm") == pytest.approx(logged(other, "train/grad_norm"), rel=1e-4)


# Other starts


@BOTH
def test_all_weights_of_a_checkpoint_train_against_their_start(tiny, base, uses, watch):
    made = tiny(uses, policy=base.handle, learning_rate=1e-3, kl_coef=0.1)
    assert made.handle.kind == "checkpoint" and logged(made, "objective/kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert logged(made, "objective/kl")[-1] != 0.0
    start, trained = (load_model(one, "cpu").state_dict() for one in (base.handle, made.handle))
    assert all(torch.equal(watch[0].ref_model.state_dict()[name], tensor) for name, tensor in start.items())
    assert all(not torch.equal(trained[name], tensor) for name, tensor in start.items() if "proj" in name)
    own = (made.handle.path / "generation_config.json").read_text()
    assert own == (base.handle.path / "generation_config.json").read_text()


@BOTH
def test_a_checkpoint_can_train_a_fresh_adapter(tiny, base, uses):
    made = tiny(uses, policy=base.handle, lora={"rank": 2})
    assert made.handle.kind == "adapter" and logged(made, "objective/kl")[0] == pytest.approx(0.0, abs=1e-6)


@BOTH
def test_dropout_is_refused(kitchen, base, pairs, uses):
    """A ratio compares weights, not noise."""
    with pytest.raises(ValidationError, match=r"lora\.dropout: wanted 0, since it would blur the log-probabilities"):
        kitchen.stage(uses, policy=base.handle, data=pairs.handle, lora={"dropout": 0.5}, programs={"checks": 1.0})


@BOTH
def test_a_gpt2_samples_and_trains_at_the_same_positions(kitchen, tiny, uses):
    """Prompts of different lengths; without positions the first ratio would not be that of the model that sampled."""
    base = kitchen.make("base", source="builtin:tiny-gpt2").handle
    rows = kitchen.make(
        "data", base=base, form="demonstrations", source="instructions.jsonl", template="alpaca", limit=24
    ).handle
    made = tiny(uses, policy=base, lora={"rank": 2}, data=rows, num_iterations=2, programs={"checks": 1.0})
    assert all(math.isfinite(value) for point in made.points() for value in point["metrics"].values())
    assert logged(made, "objective/kl")[0] == pytest.approx(0.0, abs=1e-6)
