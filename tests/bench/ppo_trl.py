"""TRL's side of `make bench-ppo`: PPOTrainer of TRL 1.12.0, the last release that has it, in its own environment.

What is chosen here favours TRL as far as its trainer allows: no autocast (its default, which was no faster here), no
gradient checkpointing, every core, no key-value cache in training passes, the reference is the policy without its
adapter instead of a fourth model, and of the micro-batches that are equally fast (4, 8, 16) the one that needs least
memory. All weights of the value model are trained, as TRL's own examples do; `--value lora` trains adapters on it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Read on import: no telemetry, no look-ups on the hub, and threads that wait asleep: spinning threads of two processes
# that share the cores hold each other up, many times over for small models.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from ppo_workload import Rollout, Workload, threads, write_result
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Stopwatch(TrainerCallback):
    """Tells the phases of each rollout apart, by wrapping two functions of TRL's trainer module.

    A rollout lasts from the end of the one before it; the update begins with the first pass that records gradients.
    """

    def __init__(self, eos: int) -> None:
        self.eos = eos
        self.rollouts: list[Rollout] = []
        self.began, self.cpu_began = 0.0, 0.0
        self.generation, self.tokens = 0.0, 0
        self.update_began: float | None = None
        self._generate, self._forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def install(self) -> None:
        """Have TRL's loop call the timed functions."""
        ppo_trainer.batch_generation, ppo_trainer.forward = self.generate, self.forward

    def generate(self, model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        """TRL's `batch_generation`, timed."""
        began = time.perf_counter()
        query_responses, logits = self._generate(model, queries, *rest)
        self.generation = time.perf_counter() - began
        self.tokens = _sampled_tokens(query_responses[:, queries.shape[1] :], self.eos)
        return query_responses, logits

    def forward(self, *args: Any) -> Any:
        """TRL's `forward`, which scoring calls without gradients and the update with them."""
        if torch.is_grad_enabled() and self.update_began is None:
            self.update_began = time.perf_counter()
        return self._forward(*args)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        assert self.update_began is not None
        seconds, update = now - self.began, now - self.update_began
        self.rollouts.append(
            Rollout(
                seconds=seconds,
                generation=self.generation,
                scoring=seconds - update - self.generation,
                update=update,
                cpu=time.process_time() - self.cpu_began,
                completion_tokens=self.tokens,
            )
        )
        self._start()

    def _start(self) -> None:
        self.began, self.cpu_began, self.update_began = time.perf_counter(), time.process_time(), None


def main() -> None:
    """Train on the workload and write what it took."""
    args = _arguments()
    work = Workload(rollouts=args.rollouts, top_layers=args.top_layers, rank=args.rank, alpha=2 * args.rank)
    torch.set_num_threads(threads())
    tokenizer: Any = AutoTokenizer.from_pretrained(args.base, padding_side="left")
    watch = Stopwatch(tokenizer.eos_token_id)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(args, work, tokenizer, watch, folder)
        watch.install()
        trainer.train()
    more = {
        "micro_batch": args.micro_batch,
        "rollout_batch": args.rollout_batch,
        "value_model": args.value,
        "precision": args.precision,
        "warm_up_seconds": [rollout.seconds for rollout in watch.rollouts[: work.warm_up]],
        "trained_parameters": sum(each.numel() for each in trainer.model.parameters() if each.requires_grad),
        "metrics": trainer.state.log_history[-1],
    }
    write_result(args.out, "trl", work, watch.rollouts[work.warm_up :], more)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the PPOTrainer of TRL 1.12.0.")
    parser.add_argument("--base", type=Path, required=True, help="folder that transformers saved the base to")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rollouts", type=int, default=Workload.rollouts, help="measured, after the warm-up")
    parser.add_argument("--top-layers", type=int, help="adapters on the last k layers only")
    parser.add_argument("--rank", type=int, default=Workload.rank, help="of the adapters; alpha is twice that")
    parser.add_argument("--reward-head", type=Path, help="safetensors with `weight` (1, hidden); drawn by default")
    parser.add_argument("--value", choices=("lora", "full"), default="full", help="what of the value model is trained")
    parser.add_argument("--precision", choices=("float32", "autocast", "bfloat16"), default="float32")
    parser.add_argument("--micro-batch", type=int, default=4, help="episodes in a pass of the update")
    parser.add_argument("--rollout-batch", type=int, default=16, help="episodes sampled and scored together")
    return parser.parse_args()


def _trainer(args: argparse.Namespace, work: Workload, tokenizer: Any, watch: Stopwatch, folder: str) -> PPOTrainer:
    lora = LoraConfig(
        r=work.rank,
        lora_alpha=work.alpha,
        target_modules=list(work.targets),
        layers_to_transform=work.layers(args.base),
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(work.seed)
    dtype = torch.bfloat16 if args.precision == "bfloat16" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype)
    policy.config.use_cache = False  # generation has a setting of its own and keeps its cache
    reward = _scorer(args.base, args.reward_head, dtype).requires_grad_(False)
    value = _scorer(args.base, args.reward_head, dtype)
    if args.value == "lora":
        value = inject_adapter_in_model(lora, value)
        value.score.requires_grad_(True)
    rows = [{"input_ids": ids} for rollout in work.prompts(tokenizer) for ids in rollout]
    trainer = PPOTrainer(
        args=_config(args, work, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows + rows[: work.episodes]),
        callbacks=[watch],
        peft_config=lora,
    )
    _keep_order(trainer, work)
    return trainer


def _config(args: argparse.Namespace, work: Workload, folder: str) -> PPOConfig:
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=work.episodes // args.micro_batch,
        local_rollout_forward_batch_size=args.rollout_batch,
        num_mini_batches=work.num_mini_batches,
        num_ppo_epochs=work.num_ppo_epochs,
        total_episodes=(work.warm_up + work.rollouts) * work.episodes,
        response_length=work.max_new_tokens,
        temperature=work.temperature,
        stop_token="eos",
        kl_coef=work.kl_coef,
        cliprange=work.cliprange,
        cliprange_value=work.cliprange_value,
        vf_coef=work.vf_coef,
        gamma=work.gamma,
        lam=work.lam,
        learning_rate=work.learning_rate,
        seed=work.seed,
        bf16=args.precision == "autocast",
        gradient_checkpointing=False,
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _scorer(base: Path, head: Path | None, dtype: torch.dtype) -> Any:
    """The base with a scalar head: the given one, or what is drawn from the seed. Its quality costs no time."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)
    model.config.use_cache = False
    if head is not None:
        from safetensors.torch import load_file

        with torch.no_grad():
            model.score.weight.copy_(load_file(head)["weight"])
    return model


def _keep_order(trainer: PPOTrainer, work: Workload) -> None:
    """Give each rollout the prompts that the workload gives it, where TRL shuffles.

    One batch more than is used stays at the end: on the last batch of a data set, accelerate would have TRL step the
    optimizer after every micro-batch.
    """
    loader: Any = DataLoader(
        trainer.train_dataset, batch_size=work.episodes, shuffle=False, collate_fn=trainer.data_collator, drop_last=True
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)


def _sampled_tokens(responses: torch.Tensor, eos: int) -> int:
    """Tokens up to and with each row's first EOS."""
    ended_before = (responses == eos).int().cumsum(1) - (responses == eos).int()
    return int((ended_before == 0).sum())


if __name__ == "__main__":
    main()
