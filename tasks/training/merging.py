"""The weights of base plus adapter, each computed when it is asked for.

With s = alpha / r (rsLoRA: alpha / sqrt(r)), W (outputs, inputs), A (r, inputs), B (outputs, r), m (outputs,):

    LoRA   W' = W + s B A                                     arXiv:2106.09685, section 4.1
    DoRA   W' = m (W + s B A) / ||W + s B A||                 arXiv:2402.09353, equation 5; the norm over inputs

in float32, then rounded to the dtype of W. What was trained whole takes the place of what was there; where embeddings
and head were one matrix and only one of them was trained, there are two from then on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import ModelError
from artifacts.kinds import Adapter, Checkpoint, unquantized
from tasks.training.models import ADAPTER_FILE, PREFIX
from tasks.training.weight_files import Weights, embedding_and_head, skeleton, transposed, write_like

if TYPE_CHECKING:
    from torch import Tensor


class Merged(Mapping[str, "Tensor"]):
    """`weights` with `adapter` in them; raises ModelError if that has a place where they have none."""

    def __init__(self, weights: Weights, adapter: Adapter) -> None:
        from safetensors.torch import load_file

        self.weights = weights
        self.config = json.loads((adapter.path / "adapter_config.json").read_text())
        self.parts: dict[str, dict[str, Tensor]] = {}
        """The matrices of each weight that has an adapter."""
        self.whole: dict[str, Tensor] = {}
        """Weights that were trained themselves."""
        for name, tensor in load_file(adapter.path / ADAPTER_FILE).items():
            module, lora, part = name.removeprefix(PREFIX).partition(".lora_")
            if lora:
                self.parts.setdefault(f"{module}.weight", {})[part.partition(".")[0]] = tensor.float()
            else:
                self.whole[module] = tensor
        model = skeleton(unquantized(adapter.base))
        self.embedding, self.head = (f"{name}.weight" for name in embedding_and_head(model))
        self.untied = self._untie()
        if strangers := (self.parts.keys() | self.whole.keys()) - set(self):
            raise ModelError(f"adapter {adapter.key[:12]} does not fit: the base has no {min(strangers)}")
        self.turned = transposed(model)

    def _untie(self) -> bool:
        """Whether embeddings and head were one and no longer are; then `whole` has both."""
        pair = {self.embedding, self.head}
        if self.head in self.weights or not pair & self.whole.keys():
            return False
        if self.config["ensure_weight_tying"] and pair <= self.whole.keys():
            del self.whole[self.head]  # the same once more
            return False
        for name in pair - self.whole.keys():
            self.whole[name] = self.weights[self.embedding]
        return True

    def __getitem__(self, name: str) -> Tensor:
        if name in self.whole:
            return self.whole[name].to(self.weights[name if name in self.weights else self.embedding].dtype)
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
        yield from self.weights
        if self.untied:
            yield self.head

    def __len__(self) -> int:
        return sum(1 for _ in self)


def write_merged(base: Checkpoint, merged: Merged, out: Path) -> None:
    """`merged` in files like those of `base`, and a configuration that fits."""
    write_like(base, merged, out)
    if merged.untied:
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2, sort_keys=True))
