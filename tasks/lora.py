"""Low-rank adapters: what a recipe says of them, and what that means for a model before it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from artifacts.errors import ModelError
from artifacts.kinds import Artifact, Model, RewardModel
from tasks.shape import ModelShape, adapted, layer_number, named

Name = Annotated[str, StringConstraints(min_length=1)]
VANISH = ", in which small updates vanish; take a base with `dtype: float32`, or leave that to an adapter"


class LoRA(BaseModel):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W x + (alpha / rank) B A x with W frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    rank: int = Field(16, ge=1)
    """r: columns of B, rows of A."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input while training."""
    target_modules: Literal["all-linear"] | Name | list[Name] = "all-linear"
    """`all-linear`, a list of module names, or a regular expression over full module names."""
    top_layers: int | None = Field(None, ge=1)
    """Adapters on the last k layers only: the layers below need no backward pass."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) instead, so that a higher rank learns no slower (arXiv:2312.03732)."""
    dora: bool = False
    """Train direction and length of each output's weights apart (arXiv:2402.09353): m (W + s B A) / ||W + s B A||, the
    norm over inputs, m starting as that of W. A number more for each output; slower."""
    modules_to_save: list[Name] = []
    """Modules that train whole beside the adapter, by name, such as `embed_tokens` for tokens that are new. Embeddings
    that are the head too stay one matrix, under either name."""

    @field_validator("target_modules")
    @classmethod
    def _is_an_expression(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str) and value != "all-linear":
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"wanted a regular expression, got {value!r}: {error}") from error
        return value

    @field_validator("target_modules", "modules_to_save")
    @classmethod
    def _in_one_order(cls, value: str | list[str]) -> str | list[str]:
        """Modules are a set: their order must not make another key."""
        return sorted(set(value)) if isinstance(value, list) else value

    def targets(self, widths: Mapping[str, int], layers: int) -> list[str]:
        """Which of a model's linear modules get an adapter, by full name; `widths` are their smaller sides.

        Raises ModelError if it is none, or one that is narrower than the rank, and for a name that matches none.
        """
        inside = {name: width for name, width in widths.items() if layer_number(name) is not None}
        first = layers - min(self.top_layers or layers, layers)
        matching = [name for name in inside if adapted(name, self.target_modules)]
        every = self.target_modules if isinstance(self.target_modules, list) else []
        strange = [target for target in every if not any(named(name, target) for name in matching)]
        if strange or not matching:
            short = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in inside}))
            wanted = strange[0] if strange else self.target_modules
            raise ModelError(f"lora.target_modules: {wanted!r} matches no linear module; this base has {short}")
        found = [name for name in matching if (layer_number(name) or 0) >= first]
        if not found:
            raise ModelError(f"lora.top_layers: {matching[0]} is not in the top {self.top_layers} of {layers} layers")
        narrowest = min(found, key=lambda name: inside[name])
        if self.rank > inside[narrowest]:
            raise ModelError(
                f"lora.rank: wanted at most {inside[narrowest]}, the width of {narrowest}, got {self.rank}: more "
                "columns than that say nothing new; lower it, or leave that module out with lora.target_modules"
            )
        return found

    def problem(self, model: Model) -> str | None:
        """Why a model can't have such an adapter, as far as its configuration tells before anything is loaded."""
        if (shape := ModelShape.of(model)) is None:
            return None
        if self.modules_to_save and shape.bytes_each == 2:
            names = ", ".join(self.modules_to_save)
            return f"lora.modules_to_save: wanted {names} in float32, got half precision{VANISH}"
        try:
            self.targets(shape.widths(), shape.layers)
        except ModelError as error:
            return str(error)
        return None

    def parameters(self, shape: ModelShape) -> int | None:
        """What a fresh adapter trains; None where a module that trains whole is not known."""
        whole = shape.whole_parameters(self.modules_to_save)
        adapters = shape.lora_parameters(self.rank, self.target_modules, self.top_layers, dora=self.dora)
        return None if whole is None else adapters + whole


def whole_modules_problem(model: Artifact) -> str | None:
    """Why an adapter, or a reward model that is one, can't share its base with others: modules were trained whole.

    None before it is there.
    """
    try:
        config = json.loads((model.path / "adapter_config.json").read_text())
    except (OSError, ValueError):  # no adapter, or not made yet
        return None
    if not (whole := config["modules_to_save"]):
        return None
    remedy = (
        "train it without" if isinstance(model, RewardModel)
        else "merge it and start from the merged checkpoint, or train it without"
    )  # fmt: skip
    return (
        f"{model.kind} {model.key[:12]} was trained with {', '.join(whole)} whole (modules_to_save), which can't go on "
        f"here; {remedy}"
    )
