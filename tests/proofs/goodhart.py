"""Over-optimisation, seen exactly: what becomes of the true reward while a learned one is pushed up.

Gao, Schulman and Hilton 2022 (arXiv:2210.10760), in a world so small that nothing has to be estimated. All 7776
completions of five tokens can be listed; each has a true ("gold") reward, a fixed random function of its tokens. From
the reference's own completions come N pairs, labelled by Bradley and Terry's noisy judge of gold. The `reward` stage
learns a proxy from them, the `ppo` stage follows that proxy, and the `dpo` stage learns from the same pairs from the
same start. At each checkpoint the KL to the reference and the expected gold and proxy rewards are sums over the list.

    python -m tests.proofs.goodhart [--out FOLDER] [--seeds 5] [--pairs 200]

writes `results.json`, and what goodhart_report.py makes of it: `report.md` and `goodhart.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.kinds import Preferences, RewardModel
from tasks.__main__ import QUIET
from tests.proofs.world import Trained, World, optimum, policies_along, train

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 5
HELD_OUT = 500
METHODS = ("ppo", "dpo")

REWARD_MODEL: dict[str, Any] = {"lora": None, "learning_rate": 1e-3, "batch_size": 40, "epochs": 12, "eval_rows": 0}
PPO: dict[str, Any] = {
    "kl_coef": 0.05, "max_new_tokens": LENGTH, "stop_token": None, "batch_size": 256, "total_episodes": 38_400,
    "num_ppo_epochs": 2, "num_mini_batches": 2, "learning_rate": 5e-4, "value_learning_rate": 2e-3,
    "schedule": "constant", "sampling_batch_size": 256, "eval_rows": 0,
}  # fmt: skip
DPO: dict[str, Any] = {"beta": 0.1, "learning_rate": 5e-4, "batch_size": 40, "epochs": 80, "eval_rows": 0}


@dataclass
class Point:
    """A policy on its way: all three are exact, the rewards in standard deviations under the reference."""

    kl: float
    gold: float
    proxy: float


@dataclass
class Seed:
    """What one seed showed: the base, the gold reward, the pairs and all training are drawn from it."""

    seed: int
    proxy_accuracy: float
    """Of held-out comparisons by gold without noise."""
    curves: dict[str, list[Point]]
    frontier: list[Point]
    """The best policies for gold: gold is as high as it can be at their KL."""
    seconds: float


def gold_reward(world: World, ref_logps: Tensor, seed: int) -> Tensor:
    """A random two-layer network on which token stands where: (N,), mean 0 and variance 1 under the reference."""
    import torch

    draw = torch.Generator().manual_seed(1000 + seed)
    tokens = torch.tensor(world.completions)
    features = torch.nn.functional.one_hot(tokens).double().flatten(1)
    hidden = features @ torch.randn(features.shape[1], 64, generator=draw, dtype=torch.float64)
    values = hidden.tanh() @ torch.randn(64, generator=draw, dtype=torch.float64)
    return standardised(values, ref_logps)


def standardised(values: Tensor, ref_logps: Tensor) -> Tensor:
    """To mean 0 and variance 1 under the reference."""
    p = ref_logps.exp()
    centred = values - (p * values).sum()
    return centred / (p * centred**2).sum().sqrt()


def judged_pairs(world: World, ref_logps: Tensor, gold: Tensor, count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of the reference's completions, the chosen one drawn by Bradley and Terry's model of gold."""
    import torch

    draw = torch.Generator().manual_seed(2000 + seed)
    (prompt,) = world.rows()
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        i, j = torch.multinomial(ref_logps.exp(), 2, generator=draw).tolist()
        if torch.rand((), generator=draw, dtype=torch.float64) > torch.sigmoid(gold[i] - gold[j]):
            i, j = j, i
        rows.append({**prompt, "chosen_ids": world.completions[i], "rejected_ids": world.completions[j]})
    return rows


def scores_of(reward: RewardModel, world: World) -> Tensor:
    """The reward model's score of every completion, (N,)."""
    import torch

    from tasks.training.logps import padded
    from tasks.training.scoring import load_reward, score

    model, head = load_reward(reward, "cpu")
    (prompt,) = world.rows()
    with torch.no_grad():
        ids = [prompt["prompt_ids"]] * len(world.completions)
        return score(model, head, padded(ids, world.completions, 0, "cpu")).double()


def accuracy(proxy: Tensor, gold: Tensor, ref_logps: Tensor) -> float:
    """How often the proxy ranks two of the reference's completions as gold does."""
    p = ref_logps.exp()
    agree = (proxy[:, None] > proxy[None]) == (gold[:, None] > gold[None])
    different = 1 - (p**2).sum()
    return float(((p[:, None] * p[None] * agree).sum() - (p**2).sum()) / different)


def along(world: World, trained: Trained, ref_logps: Tensor, gold: Tensor, proxy: Tensor) -> list[Point]:
    """The reference, then every checkpoint."""
    passed = [world.logps(model)[0] for _, model in policies_along(trained, world.base)]
    return [point(logps, ref_logps, gold, proxy) for logps in (ref_logps, *passed)]


def point(logps: Tensor, ref_logps: Tensor, gold: Tensor, proxy: Tensor) -> Point:
    """Exact figures of one policy."""
    p = logps.exp()
    return Point(*(float((p * values).sum()) for values in (logps - ref_logps, gold, proxy)))


def run_seed(folder: Path, seed: int, pairs: int) -> Seed:
    """Proxy, PPO and DPO from the same start and the same pairs."""
    started = time.monotonic()
    world = World.build(folder, length=LENGTH, letters="abcd", seed=seed, layers=2)
    ref_logps = world.logps_of(world.base)[0]
    gold = gold_reward(world, ref_logps, seed)
    rows = judged_pairs(world, ref_logps, gold, pairs + HELD_OUT, seed)
    data = world.data("pairs", rows[:pairs], rows[pairs:])
    reward = train("reward", folder / "reward", seed=seed, base=world.base, data=data, **REWARD_MODEL).handle
    raw = scores_of(reward, world)
    proxy = standardised(raw, ref_logps)
    ppo = follow(world, reward, float((proxy[0] - proxy[-1]) / (raw[0] - raw[-1])), data, seed)
    dpo_steps = DPO["epochs"] * -(-pairs // DPO["batch_size"])
    dpo = train(
        "dpo", folder / "dpo", seed=seed, save_interval=dpo_steps // 25, policy=world.base, data=data, **DPO
    )  # fmt: skip
    curves = {
        name: along(world, trained, ref_logps, gold, proxy) for name, trained in zip(METHODS, (ppo, dpo), strict=True)
    }
    kl_coefs = np.geomspace(10, 0.05, 60)
    best = [point(optimum(ref_logps, gold, kl_coef), ref_logps, gold, proxy) for kl_coef in kl_coefs]
    return Seed(seed, accuracy(proxy, gold, ref_logps), curves, best, time.monotonic() - started)


def follow(world: World, reward: RewardModel, scale: float, data: Preferences, seed: int) -> Trained:
    """PPO on the proxy, brought to variance 1 under the reference so that `kl_coef` means the same in every seed."""
    rollouts = PPO["total_episodes"] // PPO["batch_size"]
    steps = rollouts * PPO["num_ppo_epochs"] * PPO["num_mini_batches"]
    return train(
        "ppo", world.folder / "ppo", seed=seed, save_interval=steps // 25, policy=world.base, data=data,
        reward=reward, reward_weight=scale, **PPO,
    )  # fmt: skip


def run_seeds(seeds: Sequence[int], pairs: int) -> list[Seed]:
    """All seeds, as many at a time as there are cores; each by one thread."""
    workers = min(len(seeds), len(os.sched_getaffinity(0)))
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, get_context("spawn"), _worker) as pool,
    ):
        found = pool.map(run_seed, [Path(folder, str(seed)) for seed in seeds], seeds, [pairs] * len(seeds))
        return [_said(one) for one in found]


def _worker() -> None:
    """One thread, and nothing on the terminal: what goes wrong comes back as an exception."""
    os.environ |= QUIET
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    import torch

    torch.set_num_threads(1)


def _said(seed: Seed) -> Seed:
    last = {name: curve[-1] for name, curve in seed.curves.items()}
    ends = ", ".join(f"{name} gold {point.gold:.2f} at KL {point.kl:.1f}" for name, point in last.items())
    sys.stdout.write(f"seed {seed.seed}: {ends} ({seed.seconds:.0f} s)\n")
    sys.stdout.flush()
    return seed


def main() -> None:
    """Run the seeds and write the report."""
    from tests.proofs.goodhart_report import write_report

    parser = argparse.ArgumentParser(description="Over-optimisation in a world that can be listed.")
    parser.add_argument("--out", type=Path, default=Path("build/goodhart"), help="folder for the report")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=200, help="judged pairs that the proxy and DPO learn from")
    args = parser.parse_args()
    found = run_seeds(range(args.seeds), args.pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps([asdict(seed) for seed in found], indent=1) + "\n")
    sys.stdout.write(write_report(found, args.pairs, args.out) + "\n")


if __name__ == "__main__":
    main()
