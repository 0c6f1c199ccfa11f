"""Our side of `make bench-ppo`: the PPO stage itself, its adapters fresh and its reward head drawn."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `python -m tasks` and the other side have it

import torch
from ppo_workload import Rollout, Workload, threads, write_result

from artifacts.kinds import Checkpoint, Preferences, RewardModel
from tasks.context import Execution
from tasks.job import Job
from tasks.lora import LoRA
from tasks.ppo import PPO
from tasks.rl.loop import Loop
from tasks.training.models import add_adapter, load_checkpoint, load_tokenizer, save_adapter
from tasks.training.scoring import save_head


class Timed(Loop):
    """The loop with each rollout's prompts as the workload gives them, and a clock."""

    prompts: list[list[list[int]]]
    timed: list[Rollout]

    def _prompts(self, number: int) -> list[dict[str, Any]]:
        return [{"row": row, "prompt": "", "prompt_ids": ids} for row, ids in enumerate(self.prompts[number])]

    def _rollout(self, number: int) -> dict[str, float]:
        began, cpu = time.perf_counter(), time.process_time()
        point = super()._rollout(number)
        self.timed.append(
            Rollout(
                seconds=time.perf_counter() - began,
                generation=point["timing/generation"],
                scoring=point["timing/score"],
                update=point["timing/train"],
                cpu=time.process_time() - cpu,
                completion_tokens=round(point["completions/mean_length"] * self.stage.batch_size),
            )
        )
        return point


def main() -> None:
    """Train on the workload and write what it took."""
    args = _arguments()
    work = Workload(rollouts=args.rollouts, top_layers=args.top_layers, rank=args.rank, alpha=2 * args.rank)
    torch.set_num_threads(threads())
    with tempfile.TemporaryDirectory() as folder:
        base = Checkpoint(key="base", path=args.base)
        stage = _stage(base, work, Path(folder), args.micro_batch)
        job = Job.of(
            stage, uses="ppo", key="bench", seed=work.seed, draft=Path(folder, "draft"),
            execution=Execution(device="cpu", micro_batch=args.micro_batch, save_interval=10**6),
        )  # fmt: skip
        Timed.prompts = work.prompts(load_tokenizer(base))
        Timed.timed = []
        loop = Timed(stage, job.context(events=False))
        loop._save = lambda: None  # TRL is not asked to save either
        loop.run()
    trained = sum(parameter.numel() for parameter in loop.roles.policy.parameters.values())
    more = {
        "micro_batch": stage.micro_batch(Execution(micro_batch=args.micro_batch)),
        "value_model": "lora",
        "precision": str(loop.roles.policy.model.dtype).removeprefix("torch."),
        "warm_up_seconds": [rollout.seconds for rollout in loop.timed[: work.warm_up]],
        "trained_parameters": trained,
        "metrics": loop.kept["points"][-1],
    }
    write_result(args.out, "alignflow", work, loop.timed[work.warm_up :], more)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the ppo stage.")
    parser.add_argument("--base", type=Path, required=True, help="output folder of a base stage")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rollouts", type=int, default=Workload.rollouts, help="measured, after the warm-up")
    parser.add_argument("--top-layers", type=int, help="adapters on the last k layers only")
    parser.add_argument("--rank", type=int, default=Workload.rank, help="of the adapters; alpha is twice that")
    parser.add_argument("--micro-batch", type=int, help="rows in a pass; by default the stage's own choice")
    return parser.parse_args()


def _stage(base: Checkpoint, work: Workload, folder: Path, micro_batch: int | None) -> PPO:
    lora = LoRA(rank=work.rank, alpha=work.alpha, top_layers=work.top_layers)
    rows = [{"row": row, "prompt": "", "prompt_ids": [1]} for row in range(work.episodes)]
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data" / "test.jsonl").write_text("")
    return PPO(
        policy=base, lora=lora, data=Preferences(key="data", path=folder / "data", base=base),
        reward=_reward(base, lora, folder / "reward"), batch_size=work.episodes, num_ppo_epochs=work.num_ppo_epochs,
        num_mini_batches=work.num_mini_batches, total_episodes=(work.warm_up + work.rollouts) * work.episodes,
        max_new_tokens=work.max_new_tokens, temperature=work.temperature, kl_coef=work.kl_coef,
        cliprange=work.cliprange, cliprange_value=work.cliprange_value, vf_coef=work.vf_coef, gamma=work.gamma,
        lam=work.lam, learning_rate=work.learning_rate, eval_rows=0,
    )  # fmt: skip


def _reward(base: Checkpoint, lora: LoRA, out: Path) -> RewardModel:
    """A reward model as the reward stage leaves it, untrained: its quality costs no time."""
    out.mkdir()
    torch.manual_seed(1)
    model = add_adapter(load_checkpoint(base, "cpu"), lora)
    save_adapter(model, out, base)
    save_head(torch.randn(1, model.config.hidden_size) / model.config.hidden_size**0.5, 0.0, out)
    return RewardModel(key="reward", path=out, base=base)


if __name__ == "__main__":
    main()
