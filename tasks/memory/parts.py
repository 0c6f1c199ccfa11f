"""Memory by part. What a stage needs is what is there at its fullest moment: moments are compared, and one is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

Kind = Literal["cpu", "cuda"]
"""Where tensors live. On a CPU the libraries' own memory counts, and what an allocator has once had it keeps."""

LIBRARIES: dict[Kind, int] = {"cpu": 560 << 20, "cuda": 40 << 20}
"""Of Python with torch, transformers, peft and TRL, before a model is there: measured with a model of two layers and no
more, on Linux with torch's CPU build. On a GPU what the process has outside of tensors is no part of the peak that we
report; the workspace of its matrix library is."""
PLAIN: dict[Kind, int] = {"cpu": 416 << 20, "cuda": 722 << 20}
"""Main memory of Python with torch and transformers alone, for what converts models and reads rows; torch's CUDA build
is larger."""

ONCE, ACCUMULATING, AGAIN, HALF, ROLLOUT = 0.6, 0.8, 1.2, 0.3, 0.3
"""What glibc's allocator holds on a CPU beside what lives in it, as a share of the activations and logits. It keeps
what it once had, since trainers are started so (flows/running/launch.py: giving it back costs time); tensors of one
length leave holes too small for those of the next. Measured with the quickstart's shape on two cores: batches in one
pass; in several, where gradients lie between the holes, and over 4-bit layers, which are multiplied out amid them;
where checkpointing makes tensors again amid the backward pass; in half precision; and in PPO, whose update has the
shapes of the passes before it, and in evaluations."""


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment."""

    weights: int = 0
    """Of the model that trains or writes: parameters x bytes each, 4.127 bits where in 4 bits."""
    adapters: int = 0
    """4 bytes for each adapter parameter of the policy, float32 whatever the base is."""
    gradients: int = 0
    """4 bytes for each trained parameter that has one at this moment."""
    optimizer: int = 0
    """Adam's two moments: 8 bytes for each trained parameter, 2 with `adamw_8bit`."""
    activations: int = 0
    """What the backward pass will read (tasks/memory/activations.py), or what a pass without one has in flight."""
    logits: int = 0
    """Over the vocabulary, for as many positions as exist at a time (tasks/memory/logits.py)."""
    kv_cache: int = 0
    """Keys and values of what is being written: 2 x layers x key width x bytes each x rows x tokens."""
    reference: int = 0
    """The frozen start: an adapter of its own, or a model where the policy trains whole."""
    value: int = 0
    """PPO's value model: its adapter or model, head, and moments."""
    reward: int = 0
    """The reward model: its adapter, and its base where that is another copy."""
    rows: int = 0
    """Of a data stage: its file's texts and their ids."""
    libraries: int = 0
    allocator: int = 0
    """Holes between tensors, on a CPU."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def parts(self) -> dict[str, int]:
        """By name, in the order above."""
        return asdict(self)

    def with_holes(self, kind: Kind, share: float = ONCE) -> Memory:
        """With what the allocator holds beside it, `share` of what comes and goes; none on a GPU, where peaks are of
        tensors alone."""
        if kind == "cuda":
            return self
        holes = int(share * (self.activations + self.logits + self.kv_cache))
        return replace(self, allocator=self.allocator + holes)


def fullest(*moments: Memory) -> Memory:
    """The moment with the most."""
    return max(moments, key=lambda moment: moment.total)
