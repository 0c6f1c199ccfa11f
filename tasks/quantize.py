"""Quantise: the base's linear layers in 4 bits, so that adapters train beside a quarter of the weights (QLoRA).

Dettmers et al. 2023 (arXiv:2305.14314). Weights are taken in blocks of 64. Each is divided by the block's largest
magnitude c and replaced by the nearest of 16 values:

    w  ->  c q_i       nf4: q_i are quantiles of the normal distribution that weights mostly follow (section 3)
                       fp4: q_i are the values of a 4-bit floating-point number

so 4 bits a weight and 32 a block; with `double_quant` the c's are themselves kept in 8 bits, 0.127 more bits a weight
in place of 0.5. Embeddings, norms and the head stay as they are. In a forward pass the weights are multiplied out to
`compute_dtype`; gradients go through them to the adapters, never into them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from artifacts.errors import ModelError
from artifacts.kinds import Artifact, Checkpoint, Model, Quantized
from tasks.context import Context
from tasks.memory.parts import Memory
from tasks.memory.reading import quantize
from tasks.shape import ModelShape
from tasks.stage import Stage, Terms


class Quantize(Stage):
    """Makes a 4-bit copy of `base`; what is trained on it is an adapter relative to that copy."""

    version: ClassVar[int] = 2  # with 1, what trained on a bfloat16 base's 4 bits had half-precision states
    seeded: ClassVar[bool] = False

    base: Checkpoint
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values that a weight can have."""
    double_quant: bool = True
    """Quantise the scales too."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """In which the layers multiply. CPUs without bfloat16 instructions are several times faster in float32."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if isinstance(self.base, Quantized):
            raise ValueError("base: wanted one that is not quantised yet; this one is in 4 bits already")
        return self

    def output(self, key: str, path: Path) -> Artifact:
        return Quantized(key=key, path=path, original=self.base)

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.base)
        return (1 << 30) if shape is None else shape.parameters * shape.bytes_each

    def loaded(self) -> Model | None:
        return self.base

    def memory(self, terms: Terms) -> Memory | None:
        shape = ModelShape.of(self.base)
        return None if shape is None else quantize(shape, terms.kind)

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.model_files import copy_companions, write_model
        from tasks.training.quantized import elements, quantise, quantized_layers

        model = quantise(
            self.base, ctx.device(), quant_type=self.quant_type, double_quant=self.double_quant,
            compute_dtype=self.compute_dtype,
        )  # fmt: skip
        layers = {name: elements(layer.weight) for name, layer in quantized_layers(model)}
        if not layers:
            raise ModelError("the base has no linear layers outside its head; there is nothing to quantise")
        write_model(model, ctx.out)
        copy_companions(self.base.path, ctx.out)
        error = self._error(ctx)
        bits = 8 * sum(file.stat().st_size for file in ctx.out.glob("*.safetensors"))
        count = sum(elements(parameter) for parameter in model.parameters())
        ctx.say(
            f"{sum(layers.values()):,} of {count:,} parameters in 4 bits ({self.quant_type}), {bits / count:.1f} bits a"
            f" parameter in all; the weights moved by {error:.1%} of their size"
        )
        return {
            "model/parameters": float(count), "quantize/quantized": float(sum(layers.values())),
            "quantize/bits_per_parameter": bits / count, "quantize/relative_error": error,
        }  # fmt: skip

    def _error(self, ctx: Context) -> float:
        """||W - Q(W)|| / ||W|| over all quantised weights, read back from the files."""
        from tasks.training.quantized import Dequantised
        from tasks.training.weight_files import WeightFiles

        original, moved, size = WeightFiles(self.base.path), 0.0, 0.0
        now = Dequantised(Quantized(key="", path=ctx.out, original=self.base))
        for name in sorted(now.quantised):
            before = original[name].double()
            moved += float((before - now[name]).square().sum())
            size += float(before.square().sum())
        return (moved / size) ** 0.5
