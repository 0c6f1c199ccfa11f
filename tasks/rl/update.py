"""The update: several epochs of clipped steps on one rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifacts.errors import NumberError, StageError
from tasks.rl.objective import policy_loss, ratio, value_loss
from tasks.rl.recomputing import recomputing
from tasks.rl.roles import Role
from tasks.rl.rollout import MicroBatch, Rollout, Scorer, on_tokens
from tasks.rl.shares import Dealt
from tasks.training.logps import label_logps, padded, trunk_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from tasks.ppo import PPO

EPSILON = 1e-5
"""Adam's, as in the reference implementations of PPO."""


@dataclass
class Figures:
    """What the steps on one rollout showed; each list has one number a step."""

    policy_loss: list[float] = field(default_factory=list)
    value_loss: list[float] = field(default_factory=list)
    ptx_loss: list[float] = field(default_factory=list)
    approximate_kl: list[float] = field(default_factory=list)
    clip_fraction: list[float] = field(default_factory=list)
    value_clip_fraction: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    value_grad_norm: list[float] = field(default_factory=list)
    ratio_mean: list[float] = field(default_factory=list)
    ratio_max: list[float] = field(default_factory=list)
    first_ratio_deviation: float = 0.0
    """Largest distance of a ratio from 1 before the first step; 0 unless something is wrong."""
    stopped_early: bool = False

    def metrics(self, stage: PPO) -> dict[str, float]:
        """Under the names that the logs use. `train/loss` is all that was minimised, as other methods log it."""

        def mean(values: list[float]) -> float:
            return sum(values) / len(values) if values else 0.0

        policy, value, ptx = mean(self.policy_loss), mean(self.value_loss), mean(self.ptx_loss)
        found = {
            "train/loss": policy + stage.vf_coef * value + stage.ptx_coef * ptx,
            "loss/policy_avg": policy, "loss/value_avg": value,
            "policy/approxkl_avg": mean(self.approximate_kl), "policy/clipfrac_avg": mean(self.clip_fraction),
            "policy/ratio_max": max(self.ratio_max, default=1.0), "val/ratio": mean(self.ratio_mean or [1.0]),
            "val/clipfrac_avg": mean(self.value_clip_fraction),
            "val/first_ratio_deviation": self.first_ratio_deviation,
            "train/grad_norm": mean(self.grad_norm), "train/value_grad_norm": mean(self.value_grad_norm),
            "policy/stopped_early": float(self.stopped_early),
        }  # fmt: skip
        return found | ({"loss/ptx_avg": ptx} if self.ptx_loss else {})


def adam(stage: PPO, parameters: list[Any]) -> Optimizer:
    """The stage's optimizer, whose rate is set at every step; without weight decay AdamW is Adam."""
    import torch

    if stage.optimizer == "adamw_8bit":
        from bitsandbytes.optim.adam import Adam8bit

        return Adam8bit(parameters, lr=0.0, eps=EPSILON)
    return torch.optim.Adam(parameters, lr=0.0, eps=EPSILON)


class Update:
    """Holds what lasts from rollout to rollout: the two optimizers."""

    def __init__(
        self, stage: PPO, scorer: Scorer, optimizers: dict[str, Optimizer], ptx: Callable[[int], Any], micro_batch: int,
        dealt: Dealt, *, checkpointing: bool = False,
    ) -> None:  # fmt: skip
        self.stage, self.scorer, self.roles, self.optimizers, self.ptx = stage, scorer, scorer.roles, optimizers, ptx
        self.micro_batch, self.dealt, self.processes = micro_batch, dealt, dealt.processes
        self.checkpointing = checkpointing
        self.checked = False

    def __call__(self, *args: Any) -> Figures:
        """`steps`, in as little memory as the execution asks for."""
        with ExitStack() as kept:
            if self.checkpointing:
                for model in {id(role.model): role.model for role in (self.roles.policy, self.roles.value)}.values():
                    kept.enter_context(recomputing(model))
            return self.steps(*args)

    def steps(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, mask: Tensor,
        epochs: Sequence[list[list[MicroBatch]]], step: int, rates: Callable[[int], dict[str, float]],
    ) -> Figures:  # fmt: skip
        """Take one step for every minibatch of every epoch; of each, this process computes its own rows.

        `epochs` holds, for each epoch, its minibatches as micro-batches; `mask` (B, T) is what counts in the losses;
        `rates` gives the learning rates at an optimizer step, counted from `step` on.
        """
        figures = Figures()
        for minibatches in epochs:
            for parts in minibatches:
                tokens = int(mask[[row for part in parts for row in part]].sum())
                if not tokens:
                    continue
                for name, rate in rates(step).items():
                    self.optimizers[name].param_groups[0]["lr"] = rate
                self._policy_pass(rollout, advantages, mask, parts, tokens, figures)
                limit = self.stage.early_stop_kl
                if limit is not None and figures.approximate_kl[-1] > limit:
                    self.optimizers["policy"].zero_grad(set_to_none=True)
                    figures.stopped_early = True
                    return figures
                if self.stage.ptx_coef:
                    figures.ptx_loss.append(self._ptx_pass(step))
                figures.grad_norm.append(self._step("policy", self.roles.policy, bool(advantages[mask].any())))
                self._value_pass(rollout, returns, mask, parts, tokens, figures)
                surprised = bool((returns - rollout.values)[mask].any())
                figures.value_grad_norm.append(self._step("value", self.roles.value, surprised))
                self.checked = True
                step += 1
        return figures

    def _policy_pass(
        self, rollout: Rollout, advantages: Tensor, mask: Tensor, parts: list[MicroBatch], tokens: int, figures: Figures
    ) -> None:
        """Forward and backward of one minibatch; a micro-batch's backward pass comes before the next one's forward."""
        sums = dict.fromkeys(("loss", "kl", "clipped", "ratio"), 0.0)
        highest, deviation = 0.0, 0.0
        for part in self.dealt.own(parts):
            batch = rollout.batch(part, self.scorer.pad)
            new = on_tokens(self.scorer.logps(self.roles.policy, rollout, part, batch), rollout.mask[part])
            old, counts = rollout.logps[part], mask[part]
            loss = policy_loss(new, old, advantages[part], counts, cliprange=self.stage.cliprange, tokens=tokens)
            if counts.any():
                loss.backward()
            change = ratio(new.detach(), old, counts)
            sums["loss"] += float(loss.detach())
            sums["kl"] += float((0.5 * (new.detach() - old).masked_fill(~counts, 0.0) ** 2).sum()) / tokens
            sums["clipped"] += float((((change - 1).abs() > self.stage.cliprange) & counts).sum()) / tokens
            sums["ratio"] += float(change[counts].sum()) / tokens
            highest = max(highest, float(change.max()))
            deviation = max(deviation, float((change - 1).abs().max()))
        highest, deviation = self.processes.maxima([highest, deviation])
        sums = dict(zip(sums, self.processes.sums(list(sums.values())), strict=True))
        if not figures.policy_loss:
            figures.first_ratio_deviation = deviation
        figures.policy_loss.append(sums["loss"])
        figures.approximate_kl.append(sums["kl"])
        figures.clip_fraction.append(sums["clipped"])
        figures.ratio_mean.append(sums["ratio"])
        figures.ratio_max.append(highest)
        _require_finite("policy loss", sums["loss"], rollout, parts)

    def _value_pass(
        self, rollout: Rollout, returns: Tensor, mask: Tensor, parts: list[MicroBatch], tokens: int, figures: Figures
    ) -> None:
        total, clipped = 0.0, 0.0
        for part in self.dealt.own(parts):
            batch = rollout.batch(part, self.scorer.pad)
            new = on_tokens(self.scorer.values(rollout, part, batch), rollout.mask[part])
            old, counts = rollout.values[part], mask[part]
            loss = value_loss(new, old, returns[part], counts, cliprange=self.stage.cliprange_value, tokens=tokens)
            if counts.any():
                (self.stage.vf_coef * loss).backward()
            total += float(loss.detach())
            clipped += float((((new.detach() - old).abs() > self.stage.cliprange_value) & counts).sum()) / tokens
        total, clipped = self.processes.sums([total, clipped])
        figures.value_loss.append(total)
        figures.value_clip_fraction.append(clipped)
        _require_finite("value loss", total, rollout, parts)

    def _ptx_pass(self, step: int) -> float:
        """InstructGPT's term on other data (arXiv:2203.02155, equation 2): ptx_coef times a batch's loss."""
        rows = self.ptx(step)
        tokens = sum(len(row["completion_ids"]) for row in rows)
        self.roles.activate(self.roles.policy)
        model, total = self.roles.policy.model, 0.0
        own = rows[self.processes.rank :: self.processes.count]
        for at in range(0, len(own), self.micro_batch):
            part = own[at : at + self.micro_batch]
            prompts, completions = [row["prompt_ids"] for row in part], [row["completion_ids"] for row in part]
            batch = padded(prompts, completions, self.scorer.pad, self.roles.device)
            states = trunk_of(model)(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            labels = batch["labels"][:, 1:]
            kept = labels != -100
            loss = -label_logps(model.get_output_embeddings(), states[:, :-1][kept], labels[kept]).sum() / tokens
            (self.stage.ptx_coef * loss).backward()
            total += float(loss.detach())
        return self.processes.sums([total])[0]

    def _step(self, name: str, role: Role, learns: bool) -> float:
        """Clip, step and forget one role's gradients; gives their norm before clipping.

        `learns` says whether this rollout has anything to teach: if all scores are alike, it may not.
        """
        import torch

        parameters = role.parameters
        self.processes.sum_gradients(parameters.values())
        if not self.checked:
            without = [place for place, parameter in parameters.items() if parameter.grad is None]
            if without:
                raise StageError(f"ppo: {len(without)} tensors of the {name} got no gradient, {without[0]} among them")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), self.stage.max_grad_norm))
        if not math.isfinite(norm):
            raise NumberError(f"ppo: the {name}'s gradient became {norm}; lower {_rate_field(name)}")
        if norm == 0 and learns and not self.checked:
            raise NumberError(f"ppo: the {name}'s gradient was exactly 0 at the first step: nothing can be learned")
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)
        return norm


def _rate_field(name: str) -> str:
    return "learning_rate" if name == "policy" else "value_learning_rate"


def _require_finite(what: str, value: float, rollout: Rollout, parts: list[MicroBatch]) -> None:
    if not math.isfinite(value):
        rows = ", ".join(str(rollout.rows[i]["row"]) for part in parts for i in part)
        raise NumberError(f"ppo: the {what} became {value} on the rows {rows}; lower the learning rates and run again")
