"""RLOO and GRPO through TRL's trainers, on models made in code."""

from __future__ import annotations

import json
import math

import pytest
import torch
import trl
from trl.trainer.utils import use_adapter

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


# Advantages


def advantages(trainer):
    return torch.tensor(list(trainer._logs["advantages"])).view(-1, 4)


def test_rloo_compares_with_the_mean_of_the_others(tiny, watch):
    """Rewards 0, 1, 2, 5: the others' means are 8/3, 7/3, 2, 1."""
    tiny("rloo", programs=program("in_turn"), kl_coef=0.0)
    found = advantages(watch[0])
    assert torch.allclose(found, torch.tensor([-8 / 3, -4 / 3, 0.0, 4.0]).expand(2, 4), atol=1e-6)
    assert torch.allclose(found.sum(dim=1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(found, 4 / 3 * torch.tensor([-2.0, -1.0, 0.0, 3.0]), atol=1e-6)  # k / (k - 1) the distance


def test_rloo_can_normalize_them_over_the_rollout(tiny, watch):
    tiny("rloo", programs=program("in_turn"), kl_coef=0.0, normalize_advantages=True)
    found = advantages(watch[0])
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-6) and float(found.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("scale", "divisor"), [("none", 1.0), ("group", 14 / 3), ("batch", 28 / 7)])
def test_grpo_compares_with_the_mean_and_divides_as_told(tiny, watch, scale, divisor):
    """The mean is 2; the squares sum to 14 in a group of 4, to 28 in the rollout of 8."""
    tiny("grpo", programs=program("in_turn"), kl_coef=0.0, scale_rewards=scale)
    wanted = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / math.sqrt(divisor)
    assert torch.allclose(advantages(watch[0]), wanted.expand(2, 4), atol=1e-3)


def test_rloo_takes_the_kl_of_the_whole_completion_from_the_reward(tiny, monkeypatch):
    """Of every rollout, the advantages from the scores and from both adapters' log-probabilities."""
    seen, original = [], trl.RLOOTrainer._generate_and_score_completions

    def watched(self, inputs):
        output = original(self, inputs)
        log_ratio = (token_logps(self.model, "default", output, 0.7) - token_logps(self.model, "ref", output, 0.7)).sum(
            1
        )
        rewards = torch.tensor(list(self._logs["rewards"]["score"])[-8:]) - 2.0 * log_ratio
        others = (rewards.view(2, 4).sum(dim=1, keepdim=True) - rewards.view(2, 4)) / 3
        seen.append((output["advantages"], rewards - others.view(-1), log_ratio))
        return output

    monkeypatch.setattr(trl.RLOOTrainer, "_generate_and_score_completions", watched)
    tiny("rloo", kl_coef=2.0, temperature=0.7)
    assert len(seen) == 3 and seen[-1][2].abs().max() > 1e-3
    for found, wanted, _ in seen:
        assert torch.allclose(found, wanted, atol=1e-4)


def token_logps(model, name, inputs, temperature):
    """log p of each sampled token under an adapter, 0 elsewhere, (B, T)."""
    mask = inputs["completion_mask"].bool()
    ids, attention = (
        torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], 1) for part in ("ids", "mask")
    )
    with torch.no_grad(), use_adapter(model, name):
        logits = model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    logps = (logits / temperature).log_softmax(-1).gather(-1, inputs["completion_ids"][..., None]).squeeze(-1)
    return logps.masked_fill(~mask, 0.0)


@BOTH
def test_groups_whose_scores_are_equal_teach_nothing_and_break_nothing(tiny, sft, uses):
    made = tiny(uses, programs=program("nothing"), kl_coef=0.0)
    assert bytes_of(made) == (sft.handle.path / "adapter_model.safetensors").read_bytes()
    assert logged(made, "objective/equal_groups") == [1.0] * 3
    assert all(math.isfinite(value) for point in made.points() for value in point["metrics"].values())


# Losses


def test_rloos_loss_is_the_one_in_its_docstring(tiny, monkeypatch):
    pairs, original = [], trl.RLOOTrainer._compute_loss

    def watched(self, model, inputs):
        loss = original(self, model, inputs)
        ratio = (token_logps(model, "default", inputs, 1.0).sum(dim=1) - inputs["old_logps"]).exp()
        gain = inputs["advantages"]
        pairs.append((float(loss), float(-torch.minimum(ratio * gain, ratio.clamp(0.99, 1.01) * gain).mean())))
        return loss

    monkeypatch.setattr(trl.RLOOTrainer, "_compute_loss", watched)
    made = tiny("rloo", num_iterations=2, cliprange=0.01)
    assert len(pairs) == 6 and all(found == pytest.approx(wanted, abs=1e-4) for found, wanted in pairs)
    assert logged(made, "policy/clipfrac_avg")[1] > 0  # so the ratio has moved, and was clipped


def test_grpos_loss_is_the_one_in_its_docstring(tiny, monkeypatch):
    pairs, original = [], trl.GRPOTrainer._compute_loss

    def watched(self, model, inputs):
        loss = original(self, model, inputs)
        logps, mask = token_logps(model, "default", inputs, 1.0), inputs["completion_mask"].bool()
        ratio, gain = (logps - inputs["old_per_token_logps"]).exp(), inputs["advantages"][:, None]
        x = logps - token_logps(model, "ref", inputs, 1.0)
        token = -torch.minimum(ratio * gain, ratio.clamp(0.99, 1.01) * gain) + 0.5 * ratio * ((-x).exp() - 1 + x)
        pairs.append((float(loss), float(token[mask].sum() / mask.sum())))
        return loss

    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", watched)
    made = tiny("grpo", num_iterations=2, cliprange=0.01, kl_coef=0.5)
    assert len(pairs) == 6 and all(found == pytest.approx(wanted, abs=1e-4) for found, wanted in pairs)
    assert logged(made, "policy/clipfrac_avg")[1] > 0 and logged(made, "objective/kl")[-1] > 0


def test_the_gradient_of_grpos_kl_term_is_that_of_each_tokens_kl():
    """At ratio 1, of one token over three: what the docstring of tasks/grpo.py says of the two forms."""
    logits, reference = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3).double().log_softmax(0)
    policy = logits.log_softmax(0)
    kl = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    x, ratio = policy - reference, (policy - policy.detach()).exp()
    k3 = (-x).exp() - 1 + x
    weights = policy.detach().exp()  # the expectation over what is sampled
    with_ratio, without = (
        torch.autograd.grad((weights * loss).sum(), logits, retain_graph=True)[0] for loss in (ratio * k3, k3)
    )
    backwards = torch.autograd.grad((reference.exp() * (reference - policy)).sum(), logits)[0]
    assert torch.allclose(with_ratio, kl) and torch.allclose(without, backwards)
    assert not torch.allclose(kl, backwards, atol=1e-2)


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
def test_dropout_is_off(tiny, base, uses, watch):
    """A ratio compares weights, not noise, whatever dropout the adapter was made with."""
    tiny(uses, policy=base.handle, lora={"rank": 2, "dropout": 0.5}, num_iterations=2)
    dropouts = [module.p for module in watch[0].model.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts and not any(dropouts)


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
