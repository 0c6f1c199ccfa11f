"""What a model's configuration says of its size, in closed form: no torch, no weights.

Llama-shaped models (SmolLM2, Llama, Mistral, Qwen2), GPT-2 and GPT-J are known; for others nothing is guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from artifacts.kinds import Adapter, Model, Quantized, base_of
from tasks.model_config import config_at

Linear = tuple[str, int, int]
"""Module name, inputs, outputs."""
Outside = tuple[tuple[str, ...], int]
"""Module names (two where embeddings and head are one matrix), parameters."""

BYTES_IN_4_BITS = (4 + 0.127) / 8
"""Of a weight, with its share of the scales (arXiv:2305.14314, section 3)."""


@dataclass(frozen=True)
class ModelShape:
    """Parameter counts of one architecture."""

    layers: int
    hidden: int
    vocabulary: int
    linears: tuple[Linear, ...]
    """The linear modules of one layer."""
    outside: tuple[Outside, ...]
    """The modules beside the layers."""
    small: int
    """Norms and biases of one layer."""
    bytes_each: int
    """Of a weight, and of a number in the states between layers."""
    prefix: str
    in_4_bits: bool = False
    """Whether the linear modules are."""

    @classmethod
    def of(cls, model: Model) -> Self | None:
        """The shape of a model's base, or None for an unknown architecture.

        One that has not been made yet has the shape of what it will be made of, or None where that is not there either.
        """
        base = base_of(model)
        try:
            config = config_at(base.path)
        except (OSError, ValueError):  # not made yet, or damaged and to be made again
            if isinstance(base, Quantized):
                original = cls.of(base.original)
                return None if original is None else replace(original, bytes_each=4, in_4_bits=True)
            found = None if base.like is None else cls.of(base.like)
            return replace(found, bytes_each=base.bytes_each) if found and base.bytes_each else found
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self | None:
        """From the contents of a `config.json`; None where it doesn't say enough."""
        in_4_bits = bool(config.get("quantization_config"))
        width: dict[str, Any] = {"bytes_each": 4 if in_4_bits else _width(config), "in_4_bits": in_4_bits}
        try:
            if config.get("model_type") in ("llama", "mistral", "qwen2"):
                return cls(**_llama(config), **width, prefix="model.layers")
            if config.get("model_type") == "gpt2":
                return cls(**_gpt2(config), **width, prefix="transformer.h")
            if config.get("model_type") == "gptj":
                return cls(**_gptj(config), **width, prefix="transformer.h")
        except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a user's own file: loading it says what is wrong
            return None
        return None

    @property
    def others(self) -> int:
        """Embeddings, norms, biases and an untied head: all that is not in `linears`."""
        return self.layers * self.small + sum(count for _, count in self.outside)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.layers * sum(inputs * outputs for _, inputs, outputs in self.linears) + self.others

    @property
    def weight_bytes(self) -> int:
        """Memory of the frozen weights."""
        if not self.in_4_bits:
            return self.parameters * self.bytes_each
        return int(BYTES_IN_4_BITS * (self.parameters - self.others)) + 4 * self.others

    def widths(self) -> dict[str, int]:
        """The smaller side of every linear module in the layers, by full name: no product of matrices has more rank."""
        return {
            f"{self.prefix}.{layer}.{name}": min(inputs, outputs)
            for layer in range(self.layers)
            for name, inputs, outputs in self.linears
        }

    def lora_parameters(
        self, rank: int, targets: str | list[str], top_layers: int | None, *, dora: bool = False
    ) -> int:
        """r (inputs + outputs) for each adapted module: A is (r, inputs), B is (outputs, r); DoRA's m is (outputs,)."""
        layers = range(self.layers - min(top_layers or self.layers, self.layers), self.layers)
        return sum(
            rank * (inputs + outputs) + outputs * dora
            for layer in layers
            for name, inputs, outputs in self.linears
            if adapted(f"{self.prefix}.{layer}.{name}", targets)
        )

    def whole_parameters(self, names: Sequence[str]) -> int | None:
        """Of modules outside the layers that train whole; None where one of them is not known."""
        total, missing = 0, set(names)
        for places, count in self.outside:
            if here := {name for name in names for place in places if named(place, name)}:
                total, missing = total + count, missing - here
        return None if missing else total

    def adapter_parameters(self, adapter: Adapter) -> int | None:
        """The parameters of an adapter, from its files; None before they are there and whole."""
        try:
            config = json.loads((adapter.path / "adapter_config.json").read_text())
            sizes = tensor_elements(adapter.path / "adapter_model.safetensors")
        except (OSError, ValueError):
            return None
        whole = [f".{module}." for module in config["modules_to_save"] or ()]
        # What else is there is a second copy of embeddings that are the head.
        return sum(size for name, size in sizes.items() if ".lora_" in name or any(one in name for one in whole))


def _llama(config: dict[str, Any]) -> dict[str, Any]:
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads, inner = config["num_attention_heads"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // heads
    pairs = (config.get("num_key_value_heads") or heads) * size
    linears = (
        ("self_attn.q_proj", hidden, heads * size), ("self_attn.k_proj", hidden, pairs),
        ("self_attn.v_proj", hidden, pairs), ("self_attn.o_proj", heads * size, hidden),
        ("mlp.gate_proj", hidden, inner), ("mlp.up_proj", hidden, inner), ("mlp.down_proj", inner, hidden),
    )  # fmt: skip
    embeddings = _embeddings("model.embed_tokens", vocabulary * hidden, tied=config.get("tie_word_embeddings", False))
    biases = 0
    if config["model_type"] == "qwen2" or config.get("attention_bias"):
        biases += heads * size + 2 * pairs
    if config.get("attention_bias"):
        biases += hidden
    if config.get("mlp_bias"):
        biases += 2 * inner + hidden
    return {
        "layers": layers, "hidden": hidden, "vocabulary": vocabulary, "linears": linears,
        "outside": (*embeddings, (("model.norm",), hidden)), "small": 2 * hidden + biases,
    }  # fmt: skip


def _gpt2(config: dict[str, Any]) -> dict[str, Any]:
    hidden, layers, vocabulary = config["n_embd"], config["n_layer"], config["vocab_size"]
    inner = config.get("n_inner") or 4 * hidden
    linears = (
        ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
        ("mlp.c_fc", hidden, inner), ("mlp.c_proj", inner, hidden),
    )  # fmt: skip
    embeddings = _embeddings("transformer.wte", vocabulary * hidden, tied=config.get("tie_word_embeddings", True))
    positions = (("transformer.wpe",), config["n_positions"] * hidden)
    return {
        "layers": layers, "hidden": hidden, "vocabulary": vocabulary, "linears": linears,
        "outside": (*embeddings, positions, (("transformer.ln_f",), 2 * hidden)),
        "small": 4 * hidden + 3 * hidden + hidden + inner + hidden,  # two norms; biases
    }  # fmt: skip


def _gptj(config: dict[str, Any]) -> dict[str, Any]:
    hidden, layers, vocabulary = config["n_embd"], config["n_layer"], config["vocab_size"]
    inner = config.get("n_inner") or 4 * hidden
    attention = tuple((f"attn.{name}_proj", hidden, hidden) for name in ("q", "k", "v", "out"))
    linears = (*attention, ("mlp.fc_in", hidden, inner), ("mlp.fc_out", inner, hidden))
    tied = config.get("tie_word_embeddings", False)
    embeddings = _embeddings("transformer.wte", vocabulary * hidden, tied=tied, bias=vocabulary)
    return {
        "layers": layers, "hidden": hidden, "vocabulary": vocabulary, "linears": linears,
        "outside": (*embeddings, (("transformer.ln_f",), 2 * hidden)),
        "small": 2 * hidden + inner + hidden,  # a norm; biases
    }  # fmt: skip


def _embeddings(name: str, count: int, *, tied: bool, bias: int = 0) -> tuple[Outside, ...]:
    """Embeddings and head; `bias` is the head's."""
    return (((name, "lm_head"), count + bias),) if tied else (((name,), count), (("lm_head",), count + bias))


def _width(config: dict[str, Any]) -> int:
    return 2 if str(config.get("dtype") or config.get("torch_dtype")).endswith("16") else 4


def layer_number(name: str) -> int | None:
    """The layer's number in a module name such as `model.layers.7.mlp.up_proj`; None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def adapted(name: str, targets: str | list[str]) -> bool:
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(named(name, target) for target in targets)


def named(name: str, wanted: str) -> bool:
    """Whether a module's full name is `wanted` or ends in it."""
    return name == wanted or name.endswith("." + wanted)


def tensor_elements(path: Path) -> dict[str, int]:
    """The number of elements of each tensor in a safetensors file, from its header; raises OSError or ValueError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    try:
        return {name: math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its header is none of safetensors'") from error
