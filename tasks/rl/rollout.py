"""One rollout: completions of the policy as it is now, and all that is said of them before anything is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifacts.errors import StageError
from tasks.parallel.processes import ALONE, Processes
from tasks.rl.programs import Programs
from tasks.rl.roles import Role, Roles
from tasks.rl.sampler import Sampled
from tasks.training.logps import label_logps, padded
from tasks.training.scoring import last_states

if TYPE_CHECKING:
    from torch import Tensor

MicroBatch = list[int]
"""Rows of a rollout that go through a model together."""


@dataclass
class Rollout:
    """B prompts with one completion each. Tensors are (B, T) unless said otherwise, on the device, float32."""

    rows: list[dict[str, Any]]
    sampled: list[Sampled]
    texts: list[str]
    mask: Tensor
    """(B, T) bool: the sampled tokens."""
    logps: Tensor
    """log pi(y_t | s_t) of the policy that sampled, computed as training computes it: "old" during the update."""
    ref_logps: Tensor
    values: Tensor
    scores: Tensor
    """(B,): the sum of all rewards, clipped and with the penalty for truncation."""
    parts: dict[str, list[float]]
    """Each reward by name, unweighted."""
    truncated: Tensor
    """(B,) bool."""
    below: dict[str, list[Tensor]] = field(default_factory=dict)
    """For each group of roles and each row, the states (T_i, H) under the layers that train."""

    def batch(self, rows: MicroBatch, pad: int) -> dict[str, Tensor]:
        """Prompts and completions of some rows, right-padded."""
        prompts, completions = [self.rows[i]["prompt_ids"] for i in rows], [self.sampled[i].ids for i in rows]
        return padded(prompts, completions, pad, str(self.mask.device))

    def stored(self, role: Role, rows: MicroBatch) -> Tensor | None:
        """The kept states of some rows, right-padded with zeros as `batch` is; None if `role` keeps none."""
        from torch.nn.utils.rnn import pad_sequence

        if not role.depth:
            return None
        return pad_sequence([self.below[role.group][i] for i in rows], batch_first=True)


def action_states(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The states s_t before each sampled token, (N, H), and those tokens, (N,), row after row."""
    mask = labels[:, 1:] != -100
    return states[:, :-1][mask], labels[:, 1:][mask]


def on_tokens(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of all sampled tokens, row after row, as (B, T); 0 elsewhere."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


class Scorer:
    """Says of completions how likely they are, what they are worth, and what was expected."""

    def __init__(
        self, roles: Roles, programs: Programs, *, pad: int, temperature: float, reward_weight: float,
        cliprange_score: float | None, missing_eos_penalty: float | None, processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        self.roles, self.programs, self.pad, self.temperature = roles, programs, pad, temperature
        self.reward_weight, self.cliprange_score = reward_weight, cliprange_score
        self.missing_eos_penalty, self.processes = missing_eos_penalty, processes

    def __call__(
        self, rows: list[dict[str, Any]], sampled: list[Sampled], texts: list[str], parts: Sequence[MicroBatch]
    ) -> Rollout:
        """The rollout, computed in the micro-batches that the first epoch of the update will use in this process.

        A pass in the same shapes gives the same bits, so that the first ratio is 1 and not almost 1.
        """
        import torch

        rollout = self._empty(rows, sampled, texts)
        scores = torch.zeros(len(rows), device=self.roles.device)
        with torch.no_grad():
            for part in parts:
                batch = rollout.batch(part, self.pad)
                self._keep_below(rollout, part, batch)
                mask = rollout.mask[part]
                for role, into in ((self.roles.policy, rollout.logps), (self.roles.reference, rollout.ref_logps)):
                    into[part] = on_tokens(self.logps(role, rollout, part, batch), mask)
                rollout.values[part] = on_tokens(self.values(rollout, part, batch), mask)
                if self.roles.reward is not None:
                    states = self.roles.states(self.roles.reward, batch, rollout.stored(self.roles.reward, part))
                    scores[part] = self.roles.scores(last_states(states, batch["attention_mask"]))
        self.processes.merge((rollout.logps, rollout.ref_logps, rollout.values, scores))  # 0 where others compute
        self._total(rollout, scores)
        return rollout

    def _empty(self, rows: list[dict[str, Any]], sampled: list[Sampled], texts: list[str]) -> Rollout:
        import torch

        device = self.roles.device
        lengths = torch.tensor([len(one.ids) for one in sampled], device=device)
        mask = torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]
        logps, ref_logps, values = (torch.zeros(mask.shape, device=device) for _ in range(3))
        truncated = torch.tensor([one.truncated for one in sampled], device=device)
        scores = torch.zeros(len(rows), device=device)
        return Rollout(rows, sampled, texts, mask, logps, ref_logps, values, scores, {}, truncated)

    def logps(self, role: Role, rollout: Rollout, part: MicroBatch, batch: dict[str, Tensor]) -> Tensor:
        """log p of the sampled tokens of some rows at the sampling temperature, (N,), row after row."""
        states = self.roles.states(role, batch, rollout.stored(role, part))
        return label_logps(
            role.model.get_output_embeddings(), *action_states(states, batch["labels"]), self.temperature
        )

    def values(self, rollout: Rollout, part: MicroBatch, batch: dict[str, Tensor]) -> Tensor:
        """V of the state before each sampled token of some rows, (N,), row after row."""
        states = self.roles.states(self.roles.value, batch, rollout.stored(self.roles.value, part))
        return self.roles.values(action_states(states, batch["labels"])[0])

    def _keep_below(self, rollout: Rollout, part: MicroBatch, batch: dict[str, Tensor]) -> None:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        seen: set[str] = set()
        for role in (self.roles.policy, self.roles.value):
            if role.group and role.group not in seen:
                seen.add(role.group)
                states = self.roles.below(role, batch)
                assert states is not None
                kept = rollout.below.setdefault(role.group, [states.new_empty(0)] * len(rollout.rows))
                for place, row in enumerate(part):
                    kept[row] = states[place, : lengths[place]].clone()

    def _total(self, rollout: Rollout, scores: Tensor) -> None:
        """Sum the rewards, clip, and take the penalty for truncation."""
        import torch

        total = self.reward_weight * scores if self.roles.reward is not None else scores
        if self.roles.reward is not None:
            for row, value in zip(rollout.rows, scores.tolist(), strict=True):
                if not math.isfinite(value):
                    raise StageError(f"ppo: the reward model gives {value} to the completion of row {row['row']}")
            rollout.parts["reward_model"] = scores.tolist()
        if self.programs.weights:
            found = self.processes.decided(lambda: self.programs(rollout.rows, rollout.texts))
            rollout.parts |= found
            total = total + torch.tensor(self.programs.weighted(found, len(rollout.rows)), device=total.device)
        if self.cliprange_score is not None:
            total = total.clamp(-self.cliprange_score, self.cliprange_score)
        if self.missing_eos_penalty is not None:
            total = total - self.missing_eos_penalty * rollout.truncated
        rollout.scores = total.float()


def by_length(rows: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[MicroBatch]:
    """`rows` in micro-batches of like length, the longest first."""
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    for at in range(0, len(order), size):
        yield order[at : at + size]
