"""What RLOO and GRPO share."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from artifacts.errors import DataError, StageError, UserError
from tasks.context import Execution
from tasks.rl.groups import Order
from tasks.rl.rewards import Rewards
from tasks.training.classifier import score_rows
from tasks.training.logps import trunk_of
from tasks.training.models import load_checkpoint, load_tokenizer
from tasks.training.plain_model import positions_from_mask
from tasks.training.rows import load_rows
from tasks.training.trainer import score_labelled_positions_only

BOTH = pytest.mark.parametrize("uses", ["rloo", "grpo"])


# Settings


def test_a_batch_is_whole_groups(kitchen, sft, pairs, reward):
    with pytest.raises(ValidationError, match="batch_size: wanted a multiple of num_generations 4, got 6"):
        kitchen.stage(
            "rloo", policy=sft.handle, data=pairs.handle, reward=reward.handle, batch_size=6, num_generations=4
        )


@pytest.fixture
def stage(kitchen, sft, pairs, reward):
    inputs = {"policy": sft.handle, "data": pairs.handle, "reward": reward.handle}
    return lambda uses="rloo", **fields: kitchen.stage(uses, **inputs, **fields)


def test_one_pass_over_the_prompts_is_the_default_and_rollouts_are_whole(stage):
    assert stage(batch_size=8, num_generations=4).rollouts(5) == 3
    assert stage(batch_size=8, num_generations=4, total_episodes=17).rollouts(5) == 3
    assert stage(batch_size=8, num_generations=4, total_episodes=16, num_iterations=3).steps(5) == 6


def test_the_micro_batch_divides_the_batch_and_is_part_of_the_key_where_it_counts(stage):
    assert stage(batch_size=20, num_generations=4).micro_batch(Execution()) == 5
    assert stage(batch_size=8, num_generations=4).micro_batch(Execution(micro_batch=64)) == 8
    assert stage(batch_size=8, num_generations=4).execution_problem(Execution(micro_batch=2)) is None
    assert "to divide batch_size 8, got 3" in stage(batch_size=8).execution_problem(Execution(micro_batch=3))
    keyed = [
        stage("grpo", loss_type=loss).keyed_micro_batch(Execution()) for loss in ("dapo", "grpo", "dr_grpo", "bnpo")
    ]
    assert keyed == [None, None, None, 8] and stage().keyed_micro_batch(Execution(micro_batch=2)) is None


@BOTH
def test_names_from_elsewhere_are_told_what_to_write(stage, uses):
    renamed = stage(uses).renamed
    assert renamed["beta"](0.1, {}) == "kl_coef: 0.1"
    assert renamed["max_completion_length"](64, {}) == "max_new_tokens: 64"
    assert set(renamed).isdisjoint(type(stage(uses)).model_fields)
    told = {name: change(1, {}).split(":")[0] for name, change in renamed.items()}
    assert set(told.values()) <= set(type(stage(uses)).model_fields)


# The order of the prompts


def test_each_pass_takes_every_prompt_once_and_every_rollout_is_whole_groups(stage):
    order = Order(stage(batch_size=6, num_generations=2, total_episodes=48), 7, seed=3)
    order.uses = 2
    found = list(order)
    assert len(found) == len(order) == 8 * 6 * 2
    rollouts = [found[at : at + 12] for at in range(0, len(found), 12)]
    assert all(rollout[:6] == rollout[6:] for rollout in rollouts)
    assert all(rollout[0:6:2] == rollout[1:6:2] for rollout in rollouts)
    prompts = list(itertools.chain.from_iterable(rollout[0:6:2] for rollout in rollouts))
    passes = [prompts[:7], prompts[7:14], prompts[14:21]]
    assert all(sorted(one) == list(range(7)) for one in passes) and passes[0] != passes[1]
    again, other = (Order(stage(batch_size=6, num_generations=2, total_episodes=48), 7, seed) for seed in (3, 4))
    again.uses = other.uses = 2
    assert list(again) == found != list(other)


# Positions


@pytest.mark.parametrize("checkpoint", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("uses", ["RLOOTrainer", "GRPOTrainer"])
def test_log_probabilities_do_not_depend_on_left_padding(checkpoint, uses, request):
    ids, completion = torch.arange(40, 52)[None], 5
    model = load_checkpoint(request.getfixturevalue(checkpoint), "cpu")
    trained = trl_logps(uses, model)
    unaware = trained(left_padded(ids, 9), completion)
    positions_from_mask(trunk_of(model))
    plain, padded = trained(left_padded(ids, 0), completion), trained(left_padded(ids, 9), completion)
    assert torch.allclose(plain, padded, atol=1e-5)
    if checkpoint == "tiny_gpt2":  # where TRL alone would be wrong
        assert (unaware - plain).abs().max() > 1e-3
    logits = model(input_ids=ids).logits.float() / 0.7
    own = torch.log_softmax(logits, dim=-1)[0, -completion - 1 : -1].gather(-1, ids[0, -completion:, None])
    assert torch.allclose(plain[0], own.squeeze(-1), atol=1e-5)


def left_padded(ids, count):
    mask = torch.cat([torch.zeros(1, count, dtype=torch.long), torch.ones_like(ids)], dim=1)
    return torch.cat([torch.zeros(1, count, dtype=torch.long), ids], dim=1), mask


def trl_logps(uses, model):
    """TRL's own function, on a model prepared as TRL does it, at the temperature 0.7."""
    import trl
    from trl.trainer.utils import add_fused_lm_head

    score_labelled_positions_only()
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext, is_main_process=False))
    function = getattr(trl, uses)._get_per_token_logps_and_entropies
    with_grad_off = torch.no_grad()(function)
    return lambda batch, keep: with_grad_off(trainer, model, *batch, keep)[0]


# Rewards


def test_completions_are_scored_as_they_were_sampled(kitchen, pairs, reward, stage):
    """Against the function that scores held-out pairs; one completion is cut, and stays so."""
    context = SimpleNamespace(device=lambda: "cpu", progress=lambda *_, **__: None)
    tokenizer = load_tokenizer(reward.handle.base)
    rows = load_rows(pairs.handle, "train")[:3]
    completions = [rows[0]["chosen_ids"], rows[1]["chosen_ids"][:4], rows[2]["rejected_ids"]]
    found = Rewards(stage(reward_weight=0.5, missing_eos_penalty=3.0), tokenizer, context)(rows, completions)
    known = score_rows(
        reward.handle, [{**row, "sampled": ids} for row, ids in zip(rows, completions, strict=True)], "sampled", context
    )
    assert found.truncated == [False, True, False]
    assert found.parts["reward_model"] == pytest.approx(known, abs=1e-5)
    assert found.totals == pytest.approx([0.5 * known[0], 0.5 * known[1] - 3.0, 0.5 * known[2]], abs=1e-5)
    assert found.texts[1] == tokenizer.decode(completions[1]).strip()


def test_a_reward_model_that_gives_no_number_ends_the_stage(kitchen, pairs, stage, reward, monkeypatch):
    context = SimpleNamespace(device=lambda: "cpu")
    rewards = Rewards(stage(), load_tokenizer(reward.handle.base), context)
    rewards.model.head = lambda states: torch.full((len(states),), math.nan)
    row = load_rows(pairs.handle, "train")[0]
    with pytest.raises(StageError, match="gave nan on row"):
        rewards([row], [row["chosen_ids"]])


# Bad input


@BOTH
def test_what_could_not_be_trained_on_is_said_before_training(kitchen, sft, pairs, reward, uses, tmp_path):
    inputs = {"policy": sft.handle, "data": pairs.handle}
    with pytest.raises(DataError, match="leaves no room for max_new_tokens 100000"):
        kitchen.make(uses, **inputs, reward=reward.handle, max_new_tokens=100_000)
    (tmp_path / "broken.py").write_text("def one(prompts, completions):\n    return [1.0]\n")
    with pytest.raises(UserError, match="wanted 2 scores, one a completion, got 1"):
        kitchen.make(uses, **inputs, programs={f"{tmp_path}/broken.py:one": 1.0})
