"""The reward model at work: one scalar a completion, read at its last real token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.kinds import Adapter, Checkpoint, RewardModel
from tasks.training.logps import hidden_states
from tasks.training.models import ADAPTER_FILE, load_model

if TYPE_CHECKING:
    from torch import Tensor

HEAD_FILE = "head.safetensors"


def save_head(weight: Tensor, offset: float, out: Path) -> None:
    """Write the head: `weight` (1, H) in float32, and the `offset` (1,) that is taken from every score."""
    import torch
    from safetensors.torch import save_file

    save_file(
        {"weight": weight.detach().float().cpu().contiguous(), "offset": torch.tensor([offset])},
        out / HEAD_FILE,
    )


def load_reward(reward: RewardModel, device: str) -> tuple[Any, Any]:
    """(trunk with its adapter, head): the head maps (B, H) to scores (B,)."""
    weight, offset = load_head(reward, device)

    def head(states: Tensor) -> Tensor:
        return (states.float() @ weight.T).squeeze(-1) - offset

    return load_model(trunk_model(reward), device), head


def trunk_model(reward: RewardModel) -> Adapter | Checkpoint:
    """What stands under the head: an adapter on the base, or complete weights."""
    if (reward.path / ADAPTER_FILE).exists():
        return Adapter(key=reward.key, path=reward.path, base=reward.base)
    return Checkpoint(key=reward.key, path=reward.path)


def load_head(reward: RewardModel, device: str) -> tuple[Tensor, Tensor]:
    """The head's weight (1, H) and offset (1,), in float32."""
    from safetensors.torch import load_file

    tensors = load_file(reward.path / HEAD_FILE)
    return tensors["weight"].to(device), tensors["offset"].to(device)


def last_states(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The state at each row's last real token: (B, T, H) and (B, T) -> (B, H). Padding never matters."""
    import torch

    last = attention_mask.sum(dim=1) - 1
    return states[torch.arange(len(states), device=states.device), last]


def score(model: Any, head: Any, batch: dict[str, Tensor]) -> Tensor:
    """Scores of the batch's rows, (B,) in float32."""
    states: Tensor = head(last_states(hidden_states(model, batch), batch["attention_mask"]))
    return states
