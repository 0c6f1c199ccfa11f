"""The four roles of PPO on one frozen base: policy, reference, value and reward are adapters that take turns.

    policy     starts as the SFT adapter, and trains
    reference  the SFT adapter, frozen
    value      starts as the reward model, head included, and trains
    reward     the reward model, frozen

A pass names its role; what is kept per role is an adapter, not a model. Where something is fully fine-tuned, that role
has a model of its own. Dropout is off everywhere: a log-ratio must compare weights, not noise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifacts.errors import UserError
from artifacts.kinds import Adapter, Model, RewardModel, base_of
from tasks.context import Context
from tasks.lora import LoRA
from tasks.rl.adapters import copy_adapter, tuner_layers, with_adapters
from tasks.rl.prefix import Split
from tasks.shape import layer_number
from tasks.training.logps import trunk_of
from tasks.training.models import add_adapter, load_checkpoint, load_model, parameter_counts
from tasks.training.scoring import load_head, trunk_model

if TYPE_CHECKING:
    from torch import Tensor, nn

Parameters = dict[str, "nn.Parameter"]


@dataclass
class Role:
    """One of the four: whose model, which of its adapters, and what of it trains."""

    name: str
    model: Any
    adapter: str | None
    parameters: Parameters = field(default_factory=dict)
    depth: int = 0
    """Layers below this one never change, for the role that trains and for the frozen one beside it."""
    group: str = ""
    """Roles of one group have the same states at `depth`."""

    def tensors(self) -> dict[str, Tensor]:
        """What trains, on the CPU, by name."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


class Roles:
    """All roles, the two heads, and the passes through them."""

    def __init__(
        self, policy: Model, reward: RewardModel | None, lora: LoRA | None, top_layers: int | None, ctx: Context
    ) -> None:
        import torch

        from tasks.rl.lora_linear import fuse

        torch.manual_seed(ctx.seed)
        self.device = ctx.device()
        self.policy, self.reference = self._policy_pair(policy, lora)
        self.reward: Role | None = None
        if reward is None:
            self.value = self._like_policy(policy, lora)
        else:
            self.reward, self.value = self._reward_pair(reward, policy)
            self.score_weight, self.score_offset = load_head(reward, self.device)
        self.value_weight, self.value_bias = self._value_head(reward)
        self._active: dict[int, str] = {}
        self._freeze_all_but(top_layers)
        for model in self._models().values():
            fuse(model)
        self._pair(self.policy, self.reference, ctx)
        self._pair(self.value, self.reward, ctx)
        total = sum(parameter_counts(model)[0] for model in self._models().values())
        trained = [sum(p.numel() for p in role.parameters.values()) for role in (self.policy, self.value)]
        ctx.say(
            f"trains {trained[0]:,} parameters of the policy and {trained[1]:,} of the value model, of {total:,} in "
            f"memory; the policy's lowest {self.policy.depth} layers and the value model's lowest {self.value.depth} "
            "run once a rollout"
        )

    def states(self, role: Role, batch: dict[str, Tensor], below: Tensor | None) -> Tensor:
        """The last layer's states, (B, T, H); `below` is what `below(role, ...)` gave, if the role has a depth."""
        self.activate(role)
        if role.depth and below is not None:
            return Split(trunk_of(role.model), role.depth).above(batch, below)
        found: Tensor = trunk_of(role.model)(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        return found

    def below(self, role: Role, batch: dict[str, Tensor]) -> Tensor | None:
        """The states under the layers that train, (B, T, H), to be kept for the rollout; None without a depth."""
        self.activate(role)
        return Split(trunk_of(role.model), role.depth).below(batch) if role.depth else None

    def values(self, states: Tensor) -> Tensor:
        """V(s) from states (..., H), float32."""
        return states.float() @ self.value_weight[0] + self.value_bias

    def scores(self, states: Tensor) -> Tensor:
        """The reward model's score from the states at the last tokens (B, H)."""
        return states.float() @ self.score_weight[0] - self.score_offset

    def activate(self, role: Role) -> None:
        """Let `role`'s adapter be the one that its model uses.

        peft freezes every other adapter when it switches; what trains is thawed again at once, but the switch must not
        come between a forward pass and its backward pass.
        """
        if role.adapter is None or self._active.get(id(role.model)) == role.adapter:
            return
        for layer in tuner_layers(role.model):
            layer.set_adapter(role.adapter, inference_mode=True)
        self._active[id(role.model)] = role.adapter
        for trained in (self.policy, self.value):
            for parameter in trained.parameters.values():
                parameter.requires_grad_(True)

    def all(self) -> list[Role]:
        """Those that there are."""
        return [role for role in (self.policy, self.reference, self.value, self.reward) if role is not None]

    def _models(self) -> dict[int, Any]:
        return {id(role.model): role.model for role in self.all()}

    def _policy_pair(self, policy: Model, lora: LoRA | None) -> tuple[Role, Role]:
        if isinstance(policy, Adapter):
            model = with_adapters(load_checkpoint(policy.base, self.device), policy, "policy", "reference")
        elif lora is not None:
            model = add_adapter(load_checkpoint(base_of(policy), self.device), lora, name="policy")
            copy_adapter(model, "policy", "reference")
        else:
            trained, frozen = (
                load_model(policy, self.device, float32=True),
                load_model(policy, self.device, float32=True),
            )
            return Role("policy", trained, None), Role("reference", frozen, None)
        return Role("policy", model, "policy"), Role("reference", model, "reference")

    def _reward_pair(self, reward: RewardModel, policy: Model) -> tuple[Role, Role]:
        trunk = trunk_model(reward)
        if not isinstance(trunk, Adapter):
            frozen, trained = load_model(trunk, self.device), load_model(trunk, self.device, float32=True)
            return Role("reward", frozen, None), Role("value", trained, None)
        shared = self.policy.adapter is not None and base_of(policy).key == reward.base.key
        model = self.policy.model if shared else load_checkpoint(reward.base, self.device)
        model = with_adapters(model, trunk, "reward", "value")
        return Role("reward", model, "reward"), Role("value", model, "value")

    def _like_policy(self, policy: Model, lora: LoRA | None) -> Role:
        """A value model without a reward model to start from: the policy's own start, with a head of zeros."""
        if self.policy.adapter is None:
            return Role("value", load_model(policy, self.device, float32=True), None)
        copy_adapter(self.policy.model, "policy", "value")
        return Role("value", self.policy.model, "value")

    def _value_head(self, reward: RewardModel | None) -> tuple[nn.Parameter, nn.Parameter]:
        import torch
        from torch import nn

        if reward is None:
            hidden = self.policy.model.config.hidden_size
            weight, bias = torch.zeros(1, hidden, device=self.device), torch.zeros(1, device=self.device)
        else:
            weight, bias = self.score_weight.clone(), -self.score_offset.clone()
        return nn.Parameter(weight), nn.Parameter(bias)

    def _freeze_all_but(self, top_layers: int | None) -> None:
        """Choose what trains: the adapters of policy and value (or all weights), in the top layers only if so set."""
        for model in self._models().values():
            model.eval().requires_grad_(False)
        for role in (self.policy, self.value):
            layers = role.model.config.num_hidden_layers
            first = 0 if top_layers is None else max(0, layers - top_layers)
            trains = role.model if role is self.policy else trunk_of(role.model)  # nothing reads the value's LM head
            role.parameters = {
                name: parameter
                for name, parameter in trains.named_parameters()
                if _belongs(name, role) and (top_layers is None or _in_layers(name, first))
            }
            if not role.parameters:
                raise UserError(f"top_layers: the {role.name}'s adapter has nothing in the last {top_layers} layers")
            role.depth = min(layer_number(name) or 0 for name in role.parameters)
            for parameter in role.parameters.values():
                parameter.requires_grad_(True)
        self.value.parameters |= {"value_head.weight": self.value_weight, "value_head.bias": self.value_bias}

    def _pair(self, trained: Role, frozen: Role | None, ctx: Context) -> None:
        """Both roles have the same lowest layers; a trunk that can't be split exactly runs whole."""
        adapted = any(
            _belongs(name, trained) and (layer_number(name) or 0) < trained.depth
            for name, _ in trained.model.named_parameters()
        )
        same_everywhere = trained.adapter is not None and not adapted
        group = f"base {id(trained.model)} to {trained.depth}" if same_everywhere else trained.name
        if trained.depth and not self._splits(trained):
            ctx.say(f"the {trained.name}'s trunk can't be run in two parts; it runs whole every time")
            trained.depth = 0
        trained.group = group if trained.depth else ""
        if frozen is not None and frozen.model.dtype == trained.model.dtype:
            frozen.depth, frozen.group = trained.depth, trained.group

    def _splits(self, role: Role) -> bool:
        import torch

        ids = torch.arange(12, device=self.device).reshape(2, 6) % role.model.config.vocab_size
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        try:
            with torch.no_grad():
                whole = self.states(role, batch, None)
                return torch.equal(whole, self.states(role, batch, self.below(role, batch)))
        except (AttributeError, StopIteration, TypeError):
            return False


def _belongs(name: str, role: Role) -> bool:
    """Whether a parameter is of a role's adapter; all are, in a model of its own."""
    return role.adapter is None or re.search(rf"\.lora_\w+\.{role.adapter}(\.weight)?$", name) is not None


def _in_layers(name: str, first: int) -> bool:
    number = layer_number(name)
    return number is not None and number >= first
