"""What both sides of `make bench-ppo` do: the same prompts, the same settings, one form of result.

Each side runs in a virtual environment of its own (TRL dropped PPO after 1.12.0), so this module may import only what
needs neither: nothing of the project, and neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).resolve().parents[2] / "pipelines" / "quickstart_data" / "preferences.jsonl"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl")
KILOBYTE = 1 if sys.platform == "darwin" else 1024
"""In what unit the system counts a process's peak memory."""


@dataclass(frozen=True)
class Workload:
    """PPO's settings. Names are TRL's; a value is TRL's default unless its line says otherwise."""

    rollouts: int = 2
    """Measured ones, after `warm_up` others."""
    warm_up: int = 1
    """The first rollout pays for memory that later ones find ready."""
    episodes: int = 16
    """Each a prompt with one completion: a rollout, and (with one mini-batch) also an optimizer step's batch."""
    max_new_tokens: int = 53
    temperature: float = 1.0
    """TRL: 0.7."""
    kl_coef: float = 0.05
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    learning_rate: float = 5e-5
    """TRL: 3e-6, which is meant for training all weights."""
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """All linear layers but the head, named since peft takes `layers_to_transform` with names only."""
    top_layers: int | None = None
    """Adapters on the last k layers only; None for all layers."""
    seed: int = 0

    def layers(self, base: Path) -> list[int]:
        """Which of the base's layers get adapters."""
        count = int(json.loads((base / "config.json").read_text())["num_hidden_layers"])
        return list(range(count - min(self.top_layers or count, count), count))

    def prompts(self, tokenizer: Any) -> list[list[list[int]]]:
        """Prompt ids for each rollout, warm-up first: other prompts every time, the same ones on both sides."""
        lines = PROMPTS.read_text().splitlines()
        distinct = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))
        wanted = (self.warm_up + self.rollouts) * self.episodes
        if wanted > len(distinct):
            raise SystemExit(f"rollouts: {wanted} prompts are needed, {PROMPTS.name} has {len(distinct)}")
        ids = [_prompt_ids(tokenizer, prompt) for prompt in distinct[:wanted]]
        return [ids[at : at + self.episodes] for at in range(0, wanted, self.episodes)]


@dataclass
class Rollout:
    """What one rollout took, all seconds of wall time but `cpu`, and how many tokens it sampled."""

    seconds: float
    generation: float
    scoring: float
    """Reference, value and reward passes, old log-probabilities, advantages: all between sampling and learning."""
    update: float
    cpu: float
    """Processor seconds of this process: tells a slow run from a busy machine."""
    completion_tokens: int
    """With the EOS, without padding."""


def threads() -> int:
    """Every core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_result(
    path: Path, trainer: str, work: Workload, measured: Sequence[Rollout], more: Mapping[str, Any]
) -> None:
    """One side's JSON; `measured` is without warm-up."""
    seconds = sum(rollout.seconds for rollout in measured)
    tokens = sum(rollout.completion_tokens for rollout in measured)
    phases = {name: sum(getattr(rollout, name) for rollout in measured) for name in ("generation", "scoring", "update")}
    result = {
        "trainer": trainer,
        "rollouts": [asdict(rollout) for rollout in measured],
        "seconds_per_rollout": seconds / len(measured),
        "episodes_per_second": work.episodes * len(measured) / seconds,
        "completion_tokens_per_second": tokens / seconds,
        "phase_shares": {name: phase / seconds for name, phase in phases.items()},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE,
        "load_average": os.getloadavg()[0],
        "threads": threads(),
        "versions": _versions(),
        "workload": asdict(work),
        **more,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
