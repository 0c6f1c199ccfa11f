"""A decoder in two parts: the layers below the lowest one that trains, whose states never change, and the rest.

While a rollout is learned from, the states that leave the lower part are the same for the policy and its reference, in
every epoch: they are computed once and kept. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Split:
    """Runs `trunk` (ids in, states out) up to layer `depth`, or from there on."""

    def __init__(self, trunk: Any, depth: int) -> None:
        self.trunk, self.depth = trunk, depth
        self.name = layers_name(trunk)
        self.layers = getattr(trunk, self.name)

    def below(self, batch: dict[str, Tensor]) -> Tensor:
        """The states that layer `depth` gets, (B, T, H)."""
        last = _Passes(self.layers[self.depth])
        rest = [_Passes(layer) for layer in self.layers[self.depth + 1 :]]
        with self._standing_in([*self.layers[: self.depth], last, *rest]):
            self._run(batch)
        assert last.seen is not None
        return last.seen

    def above(self, batch: dict[str, Tensor], states: Tensor) -> Tensor:
        """The last layer's states, (B, T, H), from those that `below` gave."""
        passing = [_Passes(layer) for layer in self.layers[: self.depth]]
        passing[-1].gives = states
        with self._standing_in([*passing, *self.layers[self.depth :]]):
            return self._run(batch)

    def _run(self, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.trunk(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        return found

    @contextmanager
    def _standing_in(self, layers: list[Any]) -> Iterator[None]:
        setattr(self.trunk, self.name, nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(self.trunk, self.name, self.layers)


class _Passes(nn.Module):
    """Stands where a layer stood: hands on what it gets, or what it was told to give."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)  # some trunks choose a layer's mask by it
        self.seen: Tensor | None = None
        self.gives: Tensor | None = None

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.seen = states
        return states if self.gives is None else self.gives


def layers_name(trunk: Any) -> str:
    """The name under which a decoder keeps its layers: `layers` in a Llama, `h` in a GPT-2."""
    count = trunk.config.num_hidden_layers
    return next(
        name for name, child in trunk.named_children() if isinstance(child, nn.ModuleList) and len(child) == count
    )
