"""PPO's outer loop: sample, score, learn, log, save; and stop when it goes wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from artifacts.errors import InterruptedStage, NumberError
from tasks.context import Context
from tasks.rl.alarms import ringing
from tasks.rl.figures import require_finite, require_finite_tensors, rollout_figures, shown_samples
from tasks.rl.objective import KLController, advantages_and_returns, sequence_kl, token_rewards, whiten
from tasks.rl.programs import Programs
from tasks.rl.roles import Roles
from tasks.rl.rollout import MicroBatch, Rollout, Scorer, by_length
from tasks.rl.sampler import Sampled, Sampler, row_draws
from tasks.rl.settings import stop_ids
from tasks.rl.shares import Dealt
from tasks.rl.state import capture, load_state, restore, save_state
from tasks.rl.update import Update, adam
from tasks.training.checkpoints import last_good
from tasks.training.models import base_tokenizer
from tasks.training.rows import distinct_prompts, load_rows, take
from tasks.training.sampling import merged

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.ppo import PPO

STOPPED_IN_A_ROW = 3


class Loop:
    """One run of the PPO stage."""

    def __init__(self, stage: PPO, ctx: Context) -> None:
        import numpy as np

        self.stage, self.ctx = stage, ctx
        random.seed(ctx.seed)  # for reward functions that draw: ours draws from generators of its own
        np.random.seed(ctx.seed)
        self.tokenizer = base_tokenizer(stage.policy)
        stops = stop_ids(self.tokenizer, stage.stop_token)
        self.rows = distinct_prompts(load_rows(stage.data, "train"))
        self.tests = distinct_prompts(load_rows(stage.data, "test"))[: stage.eval_rows]
        self.ptx_rows = load_rows(stage.ptx_data, "train") if stage.ptx_data is not None else []
        stage.require_room([*self.rows, *self.tests])
        programs = Programs(stage.programs)
        programs.check([*self.rows, *self.tests])
        self.roles = Roles(stage.policy, stage.reward, stage.lora, stage.top_layers, ctx)
        self.sampler = Sampler(
            self.roles.policy.model, stop_ids=stops, pad=self.tokenizer.pad_token_id, temperature=stage.temperature,
            max_new_tokens=stage.max_new_tokens, batch_size=stage.sampling_batch_size,
        )  # fmt: skip
        self.scorer = Scorer(
            self.roles, programs, pad=self.tokenizer.pad_token_id, temperature=stage.temperature,
            reward_weight=stage.reward_weight, cliprange_score=stage.cliprange_score,
            missing_eos_penalty=stage.missing_eos_penalty, processes=ctx.processes,
        )  # fmt: skip
        self.optimizers = {
            name: adam(stage, list(role.parameters.values()))
            for name, role in (("policy", self.roles.policy), ("value", self.roles.value))
        }
        self.micro_batch = stage.micro_batch(ctx.execution)
        self.dealt = Dealt(ctx.processes, self.micro_batch)
        self.update = Update(
            stage, self.scorer, dict(self.optimizers), self._ptx_batch, self.micro_batch, self.dealt,
            checkpointing=ctx.execution.checkpointing,
        )  # fmt: skip
        adaptive = stage.kl_controller == "adaptive"
        self.controller = KLController(stage.kl_coef, stage.target_kl if adaptive else None, stage.horizon)
        self.rollouts = stage.rollouts(len(self.rows))
        self.kept: dict[str, Any] = {"done": 0, "tokens": 0, "points": [], "rang": [], "stopped": 0, "before": {}}
        self.best: dict[str, Any] | None = None

    def run(self) -> dict[str, float]:
        """Train to the end, from the last checkpoint if there is one; the policy's tensors are then the result."""
        self._resume()
        with self.ctx.stop.patience():
            said = self._train()
        if said is not None:
            self._go_back(said)
        require_finite_tensors(self.roles.policy.tensors())
        metrics = self._headline(self.best["rollout"] if said is not None and self.best else -1)
        self.ctx.processes.leave_to_the_first()
        return metrics

    def _train(self) -> str | None:
        """Every rollout that is left; gives why it stopped early, if it did."""
        said = None
        while self.kept["done"] < self.rollouts and said is None:
            try:
                point = self._rollout(self.kept["done"])
            except NumberError as error:
                number = self.kept["done"] + 1
                raise NumberError(f"{error} (rollout {number}; {last_good(self.ctx.work)})") from error
            self.kept["done"] += 1
            said = self._why_stop(point)
            asked = self.ctx.processes.any(self.ctx.stop.asked) and self.kept["done"] < self.rollouts
            if said is None and (self._saves() or asked):  # who goes on from here must not miss that it is to stop
                self._save()
            if said is None and asked:
                raise InterruptedStage(
                    f"ended as asked, after rollout {self.kept['done']}; run the same command again to go on"
                )
        return said

    def _resume(self) -> None:
        state = load_state(self.ctx)
        if state is None:
            self.ctx.rewind(-1)
            if self.tests:
                self.kept["before"] = self._validate("before")
            return
        self.kept = restore(state, self.roles, dict(self.optimizers), self.controller)
        self.best = self.kept.pop("best")
        self.ctx.rewind(self._step(self.kept["done"]))
        self.ctx.say(f"going on after {self.kept['done']} of {self.rollouts} rollouts")

    def _rollout(self, number: int) -> dict[str, float]:
        """Everything that happens to one batch of prompts; gives its metrics."""
        stage, started = self.stage, time.monotonic()
        rows = self._prompts(number)
        sampled, texts, lengths = self._complete(rows, number)
        generated = time.monotonic()
        epochs = [self._minibatches(number, epoch, lengths) for epoch in range(stage.num_ppo_epochs)]
        rollout = self.scorer(rows, sampled, texts, [part for parts in epochs[0] for part in self.dealt.own(parts)])
        mask = self._counted(rollout)
        advantages, returns = self._worth(rollout, mask)
        scored = time.monotonic()
        if stage.watched_limits():
            self._remember_best(number, rollout)
        figures = self.update(rollout, advantages, returns, mask, epochs, self._step(number), self._rates)
        point = rollout_figures(rollout, returns, self.controller.kl_coef) | figures.metrics(stage)
        require_finite(point)
        trained = time.monotonic()
        point |= {
            "timing/generation": generated - started, "timing/score": scored - generated,
            "timing/train": trained - scored, "train/tokens_per_second": sum(lengths) / (trained - started),
        }  # fmt: skip
        self.kept["tokens"] += sum(lengths)
        self._log(number, point, rollout)
        self.controller.update(point["objective/kl"], stage.batch_size)
        return point

    def _prompts(self, number: int) -> list[dict[str, Any]]:
        """The prompts of a rollout: passes over the data, each shuffled anew, cut into batches across their borders."""
        size = self.stage.batch_size
        return take(self.rows, number * size, size, f"{self.ctx.seed}")

    def _complete(
        self, rows: list[dict[str, Any]], stream: int | str, report: Callable[[int], None] = lambda done: None
    ) -> tuple[list[Sampled], list[str], list[int]]:
        """The policy's completions as ids and as text, and the lengths with their prompts."""
        self.roles.activate(self.roles.policy)
        model = self.roles.policy.model
        prompts = [row["prompt_ids"] for row in rows]
        draws = row_draws(self.ctx.seed, stream, range(len(rows)), self.stage.max_new_tokens)
        with merged(model):
            sampled = self.dealt.sampled(
                [len(prompt) for prompt in prompts],
                lambda places: self.sampler([prompts[place] for place in places], draws[places], report),
            )
        texts = [self.tokenizer.decode(one.ids, skip_special_tokens=True).strip() for one in sampled]
        lengths = [len(row["prompt_ids"]) + len(one.ids) for row, one in zip(rows, sampled, strict=True)]
        self.dealt.deal(lengths)
        return sampled, texts, lengths

    def _minibatches(self, number: int, epoch: int, lengths: list[int]) -> list[list[MicroBatch]]:
        """One epoch's minibatches, a fresh shuffle, each as micro-batches of like length."""
        order = list(range(len(lengths)))
        random.Random(f"{self.ctx.seed}/{number}/{epoch}").shuffle(order)
        size = len(order) // self.stage.num_mini_batches
        return [list(by_length(order[at : at + size], lengths, self.micro_batch)) for at in range(0, len(order), size)]

    def _counted(self, rollout: Rollout) -> Tensor:
        """The tokens that the losses see."""
        return rollout.mask & ~rollout.truncated[:, None] if self.stage.mask_truncated else rollout.mask

    def _worth(self, rollout: Rollout, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and returns of a rollout, each (B, T)."""
        stage = self.stage
        rewards = token_rewards(
            rollout.scores, rollout.logps, rollout.ref_logps, rollout.mask, kl_coef=self.controller.kl_coef
        )
        if stage.whiten_rewards:
            rewards = whiten(rewards, rollout.mask, shift_mean=False)
        advantages, returns = advantages_and_returns(
            rewards, rollout.values, rollout.mask, gamma=stage.gamma, lam=stage.lam
        )
        if stage.whiten_advantages and mask.any():
            advantages = whiten(advantages, mask)
        return advantages, returns

    def _log(self, number: int, point: dict[str, float], rollout: Rollout) -> None:
        """To the metrics, the table of samples, the progress bar; and the alarms."""
        known = {name: value for name, value in point.items() if not name.startswith(("timing/", "train/tokens"))}
        self.kept["points"].append(known)
        episodes, step = (number + 1) * self.stage.batch_size, self._step(number + 1)
        for alarm in ringing(self.kept["points"], ends=self.stage.stop_token is not None):
            point[f"alarms/{alarm.name}"] = 1.0
            if alarm.name not in self.kept["rang"]:
                self.kept["rang"].append(alarm.name)
                self.ctx.say(f"warning: {alarm.name}: {alarm.sign}; likely cause: {alarm.cause}")
        self.ctx.metrics.log(point | self._rates(step - 1, logged=True), step=episodes, optimizer_step=step)
        every = max(1, self.rollouts // 10)
        if number % every == 0 or number == self.rollouts - 1:
            for sample in shown_samples(rollout, episodes):
                self.ctx.samples.log(sample, step=episodes, optimizer_step=step)
        shown = {"score": point["objective/scores"], "KL": point["objective/kl"]}
        self.ctx.progress(
            number + 1, self.rollouts, "rollouts", **shown, **{"tokens/s": point["train/tokens_per_second"]}
        )

    def _step(self, rollouts: int) -> int:
        """Optimizer steps after so many rollouts (fewer were taken if some stopped early)."""
        return rollouts * self.stage.num_ppo_epochs * self.stage.num_mini_batches

    def _rates(self, step: int, *, logged: bool = False) -> dict[str, float]:
        factor = self.stage.rate_factor(step, self._step(self.rollouts))
        policy = self.stage.learning_rate
        value = policy if self.stage.value_learning_rate is None else self.stage.value_learning_rate
        rates = {"policy": factor * policy, "value": factor * value}
        return {"train/learning_rate": rates["policy"]} if logged else rates

    def _ptx_batch(self, step: int) -> list[dict[str, Any]]:
        """As many demonstrations as a minibatch has episodes."""
        size = self.stage.batch_size // self.stage.num_mini_batches
        return take(self.ptx_rows, step * size, size, f"{self.ctx.seed}/ptx")

    def _validate(self, when: str) -> dict[str, float]:
        """Mean score and length on held-out prompts, the same random numbers each time; and the KL."""
        sampled, texts, lengths = self._complete(
            self.tests, "validation",
            lambda done: self.ctx.progress(done, len(self.tests), f"held-out completions {when}"),
        )  # fmt: skip
        parts = self.dealt.own(list(by_length(range(len(self.tests)), lengths, self.micro_batch)))
        rollout = self.scorer(self.tests, sampled, texts, parts)
        kl = sequence_kl(rollout.logps, rollout.ref_logps, rollout.mask)
        found = {
            "validation/score": float(rollout.scores.mean()), "validation/kl": float(kl.mean()),
            "validation/length": float(rollout.mask.sum(dim=1).float().mean()),
        }  # fmt: skip
        require_finite(found)
        return found

    def _saves(self) -> bool:
        """At the first rollout's end after each `save_interval` steps or `save_minutes`, and after the last rollout."""
        interval, done = self.ctx.execution.save_interval, self.kept["done"]
        passed = self._step(done) // interval > self._step(done - 1) // interval
        return self.ctx.processes.any(self.ctx.save_clock.due()) or passed or done == self.rollouts

    def _save(self) -> None:
        def save() -> None:
            state = capture(self.roles, dict(self.optimizers), self.controller, {**self.kept, "best": self.best})
            save_state(state, self.ctx.work, self.kept["done"], self.ctx.execution.keep_checkpoints)

        self.ctx.processes.done_by_the_first(save)
        self.ctx.save_clock.saved()

    def _remember_best(self, number: int, rollout: Rollout) -> None:
        """Before the update: the policy that wrote this rollout, if it is the best within the limit so far."""
        kl = float(sequence_kl(rollout.logps, rollout.ref_logps, rollout.mask).mean())
        reward = float(rollout.scores.mean()) - self.stage.kl_coef * kl  # by one measure, whatever the controller does
        within = self.stage.max_kl is None or kl <= self.stage.max_kl
        if within and (self.best is None or reward > self.best["reward"]):
            self.best = {"reward": reward, "kl": kl, "rollout": number, "tensors": self.roles.policy.tensors()}

    def _why_stop(self, point: dict[str, float]) -> str | None:
        """Whether a limit says that going on does harm."""
        self.kept["stopped"] = self.kept["stopped"] + 1 if point["policy/stopped_early"] else 0
        if self.stage.max_kl is not None and point["objective/kl"] > self.stage.max_kl:
            return f"the KL of {point['objective/kl']:.3g} nats is over max_kl {self.stage.max_kl:g}"
        if self.kept["stopped"] >= STOPPED_IN_A_ROW:
            return f"early_stop_kl {self.stage.early_stop_kl:g} ended the update {STOPPED_IN_A_ROW} rollouts in a row"
        return None

    def _go_back(self, why: str) -> None:
        assert self.best is not None
        self.roles.policy.load(self.best["tensors"])
        self.ctx.say(
            f"stops after {self.kept['done']} of {self.rollouts} rollouts: {why}; keeps the policy of rollout "
            f"{self.best['rollout'] + 1} with reward {self.best['reward']:.3g} at a KL of {self.best['kl']:.3g}"
        )

    def _headline(self, rollout: int) -> dict[str, float]:
        """The metrics of a rollout, the last one or that of the policy that is kept, and the held-out ones."""
        last = dict(self.kept["points"][rollout])
        if self.tests:
            after = self._validate("after")
            last |= after | {f"{name}_before": value for name, value in self.kept["before"].items()}
            self.ctx.say(
                f"held-out score {self.kept['before']['validation/score']:.3g} -> {after['validation/score']:.3g} "
                f"at a KL of {after['validation/kl']:.3g} nats, on {len(self.tests)} prompts"
            )
        return {**last, "cost/tokens": float(self.kept["tokens"])}
