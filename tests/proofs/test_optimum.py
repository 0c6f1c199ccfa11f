"""PPO and DPO seek the same policy, and where every completion can be listed that policy is known. They find it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.proofs.world import (
    REWARD,
    Trained,
    World,
    best_objective,
    objective,
    optimum,
    policies_along,
    strength,
    train,
    variation,
)

KL_COEF = 0.7
CLOSE = 0.01
"""Total variation from the optimum that counts as there; all runs start 0.38 or further away."""

FIXED_LENGTH: dict[str, Any] = {
    "kl_coef": KL_COEF, "max_new_tokens": 2, "stop_token": None, "batch_size": 512, "total_episodes": 40_960,
    "num_ppo_epochs": 2, "num_mini_batches": 4, "learning_rate": 2e-3, "value_learning_rate": 5e-3,
    "sampling_batch_size": 512, "eval_rows": 0, "whiten_advantages": False,
}  # fmt: skip
"""At the optimum the reward, KL penalty included, is the same for every completion: all advantages are 0 and so is the
noise. Whitening would blow that nothing up again, so it stays off here."""


@dataclass
class Judged:
    """A trained policy beside the best one; log-probabilities are (prompts, N)."""

    trained: Trained
    ref_logps: torch.Tensor
    logps: torch.Tensor
    rewards: torch.Tensor
    kl_coef: float

    @property
    def best(self) -> torch.Tensor:
        return optimum(self.ref_logps, self.rewards, self.kl_coef)

    def distances(self) -> tuple[float, float]:
        """Total variation from the optimum, of the reference and of what was trained."""
        return variation(self.ref_logps, self.best), variation(self.logps, self.best)

    def short_of(self) -> float:
        """How far J stays below what is possible: kl_coef KL(pi || pi*), never negative."""
        most = best_objective(self.ref_logps, self.rewards, self.kl_coef)
        return most - objective(self.logps, self.ref_logps, self.rewards, self.kl_coef)


def judge(world: World, trained: Trained, kl_coef: float = KL_COEF, missing_eos_penalty: float = 0.0) -> Judged:
    rewards = world.rewards(missing_eos_penalty=missing_eos_penalty)
    return Judged(trained, world.logps_of(world.base), world.logps_of(trained.handle), rewards, kl_coef)


def learn(world: World, name: str, *, seed: int = 0, save_interval: int = 10**9, **fields: Any) -> Trained:
    """Run the `ppo` stage on the world's prompts with the table as its reward."""
    given = {**FIXED_LENGTH, **fields}
    data = world.data(f"{name}-prompts", world.rows())
    return train(
        "ppo", world.folder / name, seed=seed, save_interval=save_interval,
        policy=world.base, data=data, programs={REWARD: 1.0}, **given,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """64 completions: two tokens of an alphabet of eight. The seed draws the base; PPO takes it too."""
    return World.build(tmp_path_factory.mktemp("world"), length=2, seed=request.param)


@pytest.fixture(scope="module")
def ppo(world: World) -> Judged:
    return judge(world, learn(world, "ppo", seed=world.seed, save_interval=8 * 8))


def test_ppo_reaches_the_known_optimum(ppo):
    before, after = ppo.distances()
    assert before > 0.3 and after < CLOSE
    assert 0 <= ppo.short_of() < 0.005


def test_the_kl_that_ppo_reports_is_the_exact_one_within_the_noise_of_its_samples(world, ppo):
    """Point n + 1 was sampled by the policy of checkpoint n."""
    points = [point["metrics"] for point in ppo.trained.points()]
    seen = []
    for rollouts, model in policies_along(ppo.trained, world.base):
        if rollouts < len(points):
            logps = world.logps(model)
            ratios, p = logps - ppo.ref_logps, logps.exp()
            exact = float((p * ratios).sum())
            error = math.sqrt(float((p * (ratios - exact) ** 2).sum()) / FIXED_LENGTH["batch_size"])
            seen.append((points[rollouts]["objective/kl"] - exact) / error)
    assert len(seen) == 9
    assert max(map(abs, seen)) < 4
    assert abs(sum(seen)) / math.sqrt(len(seen)) < 3.5, "the mean of them shows a smaller bias"


def test_the_first_ratio_is_1_exactly_in_every_rollout(ppo):
    assert all(point["metrics"]["val/first_ratio_deviation"] == 0.0 for point in ppo.trained.points())


def test_another_estimator_of_the_kl_as_reward_ends_elsewhere(tmp_path, monkeypatch):
    """Why the log-ratio (k1) is the penalty. k3 has the same mean and less noise, and yet another optimum.

    It also shows that the check above can fail.
    """
    from tasks.rl import loop
    from tasks.rl.objective import k3, token_rewards

    def with_k3(scores, logps, ref_logps, mask, *, kl_coef):
        only_scores = token_rewards(scores, logps, logps, mask, kl_coef=kl_coef)
        return only_scores - kl_coef * k3(logps, ref_logps, mask)

    monkeypatch.setattr(loop, "token_rewards", with_k3)
    world = World.build(tmp_path, length=2)
    judged = judge(world, learn(world, "k3", total_episodes=20_480))
    assert judged.distances()[1] > 0.2


@pytest.mark.slow
def test_lora_reaches_it_too(tmp_path):
    world = World.build(tmp_path, length=2)
    lora = {"rank": 16, "alpha": 32}
    judged = judge(world, learn(world, "lora", lora=lora, learning_rate=1e-2, total_episodes=102_400))
    assert judged.trained.handle.kind == "adapter"
    assert judged.distances()[1] < CLOSE


@pytest.mark.slow
def test_with_completions_that_end_and_a_penalty_for_those_that_do_not(tmp_path):
    """Two prompts of different length, completions of one to three tokens; truncation costs a nat of reward."""
    world = World.build(tmp_path, length=3, letters="abc", prompts=("ab", "cba"), ends=True, layers=2)
    settings = {
        "kl_coef": 1.0, "missing_eos_penalty": 1.0, "max_new_tokens": 3, "stop_token": "eos",
        "learning_rate": 5e-3, "value_learning_rate": 1e-2, "total_episodes": 128_000,
    }  # fmt: skip
    judged = judge(world, learn(world, "ppo", **settings), kl_coef=1.0, missing_eos_penalty=1.0)
    before, after = judged.distances()
    assert before > 0.3 and after < CLOSE
    assert 0 <= judged.short_of() < 0.005

    truncated = torch.tensor(world.truncated)
    cut = [float((logps.exp() * truncated).sum(dim=1).mean()) for logps in (judged.logps, judged.best)]
    assert cut[0] == pytest.approx(cut[1], abs=0.01)
    reported = judged.trained.metrics["completions/clipped_ratio"]
    assert reported == pytest.approx(cut[0], abs=4 * math.sqrt(cut[0] * (1 - cut[0]) / 512))


@pytest.mark.slow
def test_dpo_with_every_comparison_reaches_the_same_policy(tmp_path):
    """DPO on the preferences of a whole Bradley-Terry population, with beta the KL coefficient.

    Completions have strengths 1, 3 and 9, so that of ten comparisons of a 9 with a 1 exactly nine go to the stronger:
    repeated rows are the population itself, with no sampling noise.
    """
    world = World.build(tmp_path, length=2)
    pairs = world.data("pairs", population(world))
    settings = {"beta": KL_COEF, "batch_size": 512, "epochs": 50, "learning_rate": 3e-3, "warmup_ratio": 0.02}
    dpo = judge(world, train("dpo", tmp_path / "dpo", policy=world.base, data=pairs, eval_rows=0, **settings))
    before, after = dpo.distances()
    assert before > 0.3 and after < CLOSE
    assert 0 <= dpo.short_of() < 0.005
    ppo = judge(world, learn(world, "ppo"))
    assert variation(dpo.logps, ppo.logps) < CLOSE


def population(world: World) -> list[dict[str, Any]]:
    """Every pair of completions in both orders, each as often as Bradley and Terry's model has it."""
    rows: list[dict[str, Any]] = []
    for row in world.rows():
        strengths = [strength(row["prompt"], text) for text in world.texts()]
        for i, ids in enumerate(world.completions):
            for j, others in enumerate(world.completions):
                if i != j:
                    times = strengths[i] // math.gcd(strengths[i], strengths[j])
                    rows += [{**row, "chosen_ids": ids, "rejected_ids": others}] * times
    return rows
