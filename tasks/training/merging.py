"""The weights of base plus adapter, each computed when it is asked for.

With s = alpha / r (rsLoRA: alpha / sqrt(r)), W (outputs, inputs), A (r, inputs), B (outputs, r), m (outputs,):

    LoRA   W' = W + s B A                                     arXiv:2106.09685, section 4.1
    DoRA   W' = m (W + s B A) / ||W + s B A||                 arXiv:2402.09353, equation 5; the norm over inputs

in float32, then rounded to the dtype of W.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from artifacts.errors import ModelError
from artifacts.kinds import Adapter, unquantized
from tasks.training.models import ADAPTER_FILE
from tasks.training.weight_files import Weights, transposed

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
"""What peft puts before the name of every module."""


class Merged(Mapping[str, "Tensor"]):
    """`weights` with `adapter` in them; raises ModelError if that has a place where they have none."""

    def __init__(self, weights: Weights, adapter: Adapter) -> None:
        from safetensors.torch import load_file

        self.weights = weights
        self.config = json.loads((adapter.path / "adapter_config.json").read_text())
        self.parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load_file(adapter.path / ADAPTER_FILE).items():
            module, _, part = name.removeprefix(PREFIX).partition(".lora_")
            self.parts.setdefault(f"{module}.weight", {})[part.partition(".")[0]] = tensor.float()
        if strangers := self.parts.keys() - weights.keys():
            raise ModelError(f"adapter {adapter.key[:12]} does not fit: the base has no {min(strangers)}")
        self.turned = transposed(unquantized(adapter.base))

    def __getitem__(self, name: str) -> Tensor:
        weight = self.weights[name]
        if name not in self.parts:
            return weight
        upright = weight.float().T if name in self.turned else weight.float()
        tuned = self._tuned(upright, name)
        return (tuned.T if name in self.turned else tuned).to(weight.dtype)

    def _tuned(self, weight: Tensor, name: str) -> Tensor:
        """W' from W, both (outputs, inputs) in float32."""
        parts = self.parts[name]
        found = weight + self._scale(name, len(parts["A"])) * (parts["B"] @ parts["A"])
        if "magnitude_vector" in parts:
            found = (parts["magnitude_vector"] / found.norm(dim=1))[:, None] * found
        return found

    def _scale(self, name: str, rank: int) -> float:
        """An adapter from elsewhere may have other alphas for some modules."""
        from peft.utils.other import get_pattern_key

        patterns: dict[str, float] = self.config.get("alpha_pattern") or {}
        pattern = get_pattern_key(list(patterns), name.removesuffix(".weight"))
        alpha: float = patterns.get(pattern, self.config["lora_alpha"])
        return alpha / (rank**0.5 if self.config["use_rslora"] else rank)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
