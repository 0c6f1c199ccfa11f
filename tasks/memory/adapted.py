"""Which linear modules have an adapter, from a recipe's settings or from an adapter's files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from artifacts.kinds import Adapter, Model, RewardModel
from tasks.lora import LoRA
from tasks.shape import ModelShape, adapted, layer_number, named, tensor_elements

NONE: Mapping[str, LoRA] = {}


@dataclass(frozen=True)
class Adapted:
    """The adapters of one policy; `layers` has the names of the adapted modules of each layer, the lowest first."""

    layers: tuple[frozenset[str], ...]
    rank: int
    parameters: int
    """With those of modules that train whole beside the adapters."""
    dropout: bool = False
    head: bool = False
    """Whether the head trains too."""
    dora: bool = False

    @classmethod
    def fresh(cls, shape: ModelShape, lora: LoRA) -> Adapted | None:
        """What a recipe's settings make; None where a module that trains whole is not known."""
        parameters = lora.parameters(shape)
        if parameters is None:
            return None
        first = shape.layers - min(lora.top_layers or shape.layers, shape.layers)
        names = [name for name, _, _ in shape.linears]
        full = (f"{shape.prefix}.{layer}.{name}" for layer in range(first, shape.layers) for name in names)
        found = _by_layer(shape, (name for name in full if adapted(name, lora.target_modules)))
        return cls(found, lora.rank, parameters, lora.dropout > 0, trains_head(shape, lora.modules_to_save), lora.dora)

    @classmethod
    def of(cls, shape: ModelShape, made: Adapter | RewardModel, planned: Mapping[str, LoRA] = NONE) -> Adapted | None:
        """What is in an adapter's files; before they are there, what the settings `planned` for its key will make.

        None where there is neither.
        """
        try:
            config = json.loads((made.path / "adapter_config.json").read_text())
            names = tensor_elements(made.path / "adapter_model.safetensors")
        except (OSError, ValueError):
            return cls.fresh(shape, planned[made.key]) if made.key in planned else None
        parameters = shape.adapter_parameters(Adapter(key=made.key, path=made.path, base=made.base))
        matrices = (name.partition(".lora_A")[0] for name in names if ".lora_A" in name)
        modules = (name.removeprefix("base_model.model.") for name in matrices)
        head = trains_head(shape, config["modules_to_save"] or [])
        dora = any("lora_magnitude" in name for name in names)
        return cls(_by_layer(shape, modules), int(config["r"]), parameters or 0, head=head, dora=dora)

    @classmethod
    def start(
        cls, shape: ModelShape, start: Model, lora: LoRA | None, planned: Mapping[str, LoRA] = NONE
    ) -> Adapted | None:
        """Of a stage that starts from an adapter, or makes a fresh one; None for neither, and for what is not known."""
        if isinstance(start, Adapter):
            return cls.of(shape, start, planned)
        return None if lora is None else cls.fresh(shape, lora)

    def top(self, count: int | None) -> Adapted:
        """Only what is in the last `count` layers, if a number is given; the parameters stay in memory all the same."""
        below = len(self.layers) - min(count or len(self.layers), len(self.layers))
        return replace(self, layers=(frozenset[str](),) * below + self.layers[below:])

    def matrices(self, shape: ModelShape) -> int:
        """Parameters of the adapters in `layers`: r (inputs + outputs) each, of DoRA and an output's length."""
        sizes = {name: self.rank * (inputs + outputs) + outputs * self.dora for name, inputs, outputs in shape.linears}
        return sum(sizes[name] for names in self.layers for name in names)

    def covered(self, shape: ModelShape) -> int:
        """Weights under the adapters."""
        sizes = {name: inputs * outputs for name, inputs, outputs in shape.linears}
        return sum(sizes[name] for names in self.layers for name in names)

    @property
    def lowest(self) -> int:
        """The first layer that a backward pass comes to."""
        return next((number for number, names in enumerate(self.layers) if names), len(self.layers))


def parameters(model: Model, planned: Mapping[str, LoRA] = NONE) -> int | None:
    """Of a model with its adapter; None while either is not known."""
    shape = ModelShape.of(model)
    if shape is None or not isinstance(model, Adapter):
        return None if shape is None else shape.parameters
    found = Adapted.of(shape, model, planned)
    return None if found is None else shape.parameters + found.parameters


def trains_head(shape: ModelShape, names: Iterable[str]) -> bool:
    """Whether a head, or embeddings that are the head, are among modules that train whole."""
    heads = next(places for places, _ in shape.outside if "lm_head" in places)
    return any(named(place, name) for name in names for place in heads)


def _by_layer(shape: ModelShape, modules: Iterable[str]) -> tuple[frozenset[str], ...]:
    """Names within the layer, by layer."""
    found: list[set[str]] = [set() for _ in range(shape.layers)]
    for module in modules:
        number = layer_number(module)
        if number is not None and number < shape.layers:
            found[number].add(module.partition(f".{number}.")[2])
    return tuple(map(frozenset, found))
