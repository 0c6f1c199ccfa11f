"""All that PPO must remember between two rollouts; nothing lives on inside one.

The order of prompts, the minibatches and every row's random stream follow from the seed and the rollout's number, so
they need no place here.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tasks.context import Context
from tasks.rl.objective import KLController
from tasks.rl.roles import Roles
from tasks.training.checkpoints import newest_checkpoint, publish, require_space, saving

STATE_FILE = "state.pt"


def capture(roles: Roles, optimizers: dict[str, Any], controller: KLController, kept: dict[str, Any]) -> dict[str, Any]:
    """The state after a rollout; `kept` is whatever the loop itself counts."""
    import numpy as np
    import torch

    return {
        "policy": roles.policy.tensors(),
        "value": roles.value.tensors(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "kl_coef": controller.kl_coef,
        "random": {
            "python": random.getstate(),
            "numpy": [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        "kept": kept,
    }


def restore(
    state: dict[str, Any], roles: Roles, optimizers: dict[str, Any], controller: KLController
) -> dict[str, Any]:
    """Put everything back; gives `kept`."""
    import numpy as np
    import torch

    roles.policy.load(state["policy"])
    roles.value.load(state["value"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    controller.kl_coef = state["kl_coef"]
    drawn = state["random"]
    random.setstate(drawn["python"])
    name, numbers, *rest = drawn["numpy"]
    np.random.set_state((name, np.array(numbers, dtype=np.uint32), *rest))
    torch.set_rng_state(drawn["torch"])
    if drawn["cuda"]:
        torch.cuda.set_rng_state_all(drawn["cuda"])
    kept: dict[str, Any] = state["kept"]
    return kept


def save_state(state: dict[str, Any], work: Path, rollout: int, keep: int) -> None:
    """Write a checkpoint; raises StageError if the disk has no room for it."""
    import torch

    require_space(work, state_bytes(state))
    folder = saving(work) / f"checkpoint-{rollout}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / STATE_FILE)
    publish(folder, work, keep)


def state_bytes(state: Any) -> int:
    """What the tensors in a nest of mappings and lists take."""
    if isinstance(state, dict):
        return sum(map(state_bytes, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(state_bytes, state))
    return state.nbytes if hasattr(state, "nbytes") else 0


def load_state(ctx: Context) -> dict[str, Any] | None:
    """The newest complete state, checked against the digest in its manifest; None if there is none."""
    import torch

    folder = ctx.processes.decided(lambda: newest_checkpoint(ctx.work, ctx.say))
    if folder is None:
        return None
    state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    return state
