"""TRL's side of test_trl.py: PPOTrainer of TRL 1.12.0, the last release that has it, in its own environment.

Its rewards, advantages and losses are lines of one long method. Two functions that the method calls are replaced by
ones that read their caller's local variables: what is written is what TRL trained with, not a copy of its formulas.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Read on import: no telemetry, no look-ups on the hub.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD, EOS, VOCABULARY = 0, 1, 64
EPISODES, MICRO_BATCH, ROLLOUTS = 16, 4, 2

SETTINGS: dict[str, Any] = {
    "gamma": 0.98, "lam": 0.9, "kl_coef": 0.1, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.5,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"kl_estimator": "k1", "whiten_rewards": False},
    "whitened": {"kl_estimator": "k3", "whiten_rewards": True},
}

ROLLOUT = (
    "scores", "logprobs", "ref_logprobs", "values", "kl", "rewards", "advantages", "returns",
    "sequence_lengths", "padding_mask", "padding_mask_p1",
)  # fmt: skip
MICRO = (
    "micro_batch_inds", "mb_advantage", "mb_return", "mb_values", "mb_logprobs", "new_logprobs", "vpred",
    "pg_loss_max", "pg_loss", "vf_loss_max", "vf_loss",
)  # fmt: skip


class Recorder:
    """Copies local variables of `PPOTrainer.train` when it whitens and when it calls `backward`, once a micro-batch."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.rollouts: list[dict[str, Any]] = []
        self.raw: dict[str, torch.Tensor] = {}
        self._whiten, self._backward = ppo_trainer.masked_whiten, trainer.accelerator.backward

    def whiten(self, values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        """TRL's `masked_whiten`, which the trainer calls for rewards without `shift_mean` and for advantages with."""
        self.raw["raw_advantages" if shift_mean else "raw_rewards"] = values.clone()
        return self._whiten(values, mask, shift_mean)

    def backward(self, loss: torch.Tensor, **rest: Any) -> None:
        """Accelerate's `backward`; everything that the loss was made of is still there."""
        variables = sys._getframe(1).f_locals
        if len(self.rollouts) < variables["update"]:
            self.rollouts.append({**_copied(variables, ROLLOUT), **self.raw, "micro_batches": []})
        gradients = torch.autograd.grad(loss, (variables["new_logprobs"], variables["vpred"]), retain_graph=True)
        micro = _copied(variables, MICRO) | dict(zip(("grad_logprobs", "grad_vpred"), gradients, strict=True))
        self.rollouts[-1]["micro_batches"].append(micro)
        self._backward(loss, **rest)


def _copied(variables: dict[str, Any], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(variables[name]).detach().clone() for name in names}


def record(**given: Any) -> list[dict[str, Any]]:
    """Train for two rollouts of two epochs, with steps so large that ratios and values leave their ranges."""
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=EPISODES // MICRO_BATCH,
            local_rollout_forward_batch_size=EPISODES // 2,
            num_mini_batches=2,
            num_ppo_epochs=2,
            total_episodes=ROLLOUTS * EPISODES,
            response_length=12,
            stop_token="eos",
            learning_rate=1e-2,
            seed=0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **SETTINGS,
            **given,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=_tokenizer(),
            model=_policy(seed=1),
            ref_model=_policy(seed=2),  # not the policy's own start, so that the KL penalty counts from the beginning
            reward_model=_scorer(seed=3).requires_grad_(False),
            value_model=_scorer(seed=4),
            train_dataset=_prompts(),
        )
        recorder = Recorder(trainer)
        trainer.accelerator.backward = recorder.backward
        ppo_trainer.masked_whiten = recorder.whiten
        try:
            trainer.train()
        finally:
            ppo_trainer.masked_whiten = recorder._whiten
    return recorder.rollouts


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2, num_labels=1, use_cache=False,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip


def _policy(seed: int) -> LlamaForCausalLM:
    """A Llama that ends about half of its completions, and never samples PAD, which TRL would take for their end."""
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(_config())
    bias = torch.zeros(VOCABULARY)
    bias[EOS], bias[PAD] = 2.3, -40.0
    policy.lm_head.bias = torch.nn.Parameter(bias)
    return policy


def _scorer(seed: int) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_config())


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{index}": index for index in range(2, VOCABULARY)}}
    core = Tokenizer(models.WordLevel(vocab=words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def _prompts() -> Dataset:
    """Random tokens, two to nine of them."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 10, ((ROLLOUTS + 1) * EPISODES,), generator=draw).tolist()
    rows = [torch.randint(2, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]
    return Dataset.from_list([{"input_ids": row} for row in rows])


def main() -> None:
    """Record both runs."""
    parser = argparse.ArgumentParser(description="Record what the PPOTrainer of TRL 1.12.0 computes.")
    parser.add_argument("out", type=Path, help="file to write, for torch.load")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.save({"settings": SETTINGS, **{name: record(**given) for name, given in RUNS.items()}}, out)


if __name__ == "__main__":
    main()
