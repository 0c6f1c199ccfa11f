"""LoRA's linear layer with its low-rank part added inside the product, W x + s B A x (arXiv:2106.09685, section 4.1).

peft computes the two parts apart, scales one and adds them: three passes over an output as wide as the layer, in
float32 even where the base is bfloat16. Here the second product adds onto the first one's result, in the base's dtype.
What is trained stays float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tasks.rl.adapters import tuner_layers


def fuse(model: Any) -> int:
    """Let every layer of `model` that has a plain LoRA adapter compute `LoRALinear`; gives how many do.

    Layers of another kind (quantised, DoRA, GPT-2's Conv1D, trained base weights) keep peft's way.
    """
    from peft.tuners.lora.layer import Linear

    fused = 0
    for layer in tuner_layers(model):
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.fan_in_fan_out:
            layer.forward = _Forward(layer, layer.forward)  # type: ignore[method-assign]  # this layer's alone
            fused += 1
    return fused


class _Forward:
    """In the place of a layer's own `forward`, which it calls whenever more than plain LoRA is asked for."""

    def __init__(self, layer: Any, eager: Any) -> None:
        self.layer, self.eager = layer, eager

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer, base = self.layer, self.layer.base_layer
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        plain = not (args or kwargs or layer.merged or layer.disable_adapters) and len(names) == 1
        if not plain or x.dtype != base.weight.dtype or base.weight.requires_grad or not self._only_lora(names[0]):
            found: Tensor = self.eager(x, *args, **kwargs)
            return found
        name = names[0]
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        fused: Tensor = LoRALinear.apply(x, base.weight, base.bias, down, up, layer.scaling[name])
        return fused

    def _only_lora(self, name: str) -> bool:
        """Whether the adapter is two matrices and nothing else: no DoRA, no bias, no dropout now."""
        layer = self.layer
        dropout = layer.lora_dropout[name]
        drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
        return name not in layer.lora_variant and layer.lora_B[name].bias is None and not drops


class LoRALinear(torch.autograd.Function):
    """y = W x + b + s B A x for x (..., in), W (out, in), A (r, in), B (out, r). W and b get no gradient.

    With G = dL/dy:  dL/dx = G W + s (G B) A,  dL/dA = s (G B)' x,  dL/dB = s G' (A x).
    """

    @staticmethod
    def forward(  # type: ignore[override]  # torch declares it for any arguments, each function has its own
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        rows, low_down, low_up = x.reshape(-1, x.shape[-1]), down.to(x.dtype), up.to(x.dtype)
        inner = rows @ low_down.T
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        y.addmm_(inner, low_up.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, weight, low_down, low_up)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, down.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_inner = (grad @ up).mul_(ctx.scaling)
        needs_x, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        grad_x = (grad @ weight).addmm_(grad_inner, down).view(ctx.shape) if needs_x else None
        grad_down = (grad_inner.T @ rows).to(ctx.dtype) if needs_down else None
        grad_up = (grad.T @ inner).to(ctx.dtype).mul_(ctx.scaling) if needs_up else None
        return grad_x, None, None, grad_down, grad_up, None
