"""The fused LoRA product against the formula written out, and against peft's own layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tasks.rl.lora_linear import LoRALinear, fuse

IN, OUT, RANK, SCALING = 12, 20, 3, 0.7


def drawn(*, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """x (2, 5, in), W, b, A, B; x, A and B want gradients."""
    dtype = torch.float64
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, IN, dtype=dtype), torch.randn(OUT, IN, dtype=dtype) / IN**0.5
    down, up = torch.randn(RANK, IN, dtype=dtype), torch.randn(OUT, RANK, dtype=dtype)
    for tensor in (x, down, up):
        tensor.requires_grad_(True)
    return x, weight, torch.randn(OUT, dtype=dtype) if bias else None, down, up


@pytest.mark.parametrize("bias", [True, False])
def test_the_value_is_the_papers_formula(bias):
    x, weight, b, down, up = drawn(bias=bias)
    formula = x @ (weight + SCALING * up @ down).T + (0 if b is None else b)
    torch.testing.assert_close(LoRALinear.apply(x, weight, b, down, up, SCALING), formula)


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_are_those_of_finite_differences(bias):
    x, weight, b, down, up = drawn(bias=bias)
    assert torch.autograd.gradcheck(lambda *on: LoRALinear.apply(on[0], weight, b, *on[1:], SCALING), (x, down, up))


def test_in_bfloat16_the_adapters_gradients_stay_float32_and_near_the_exact_ones():
    exact = drawn()
    LoRALinear.apply(*exact, SCALING).square().sum().backward()
    x, weight, b, down, up = drawn()
    assert b is not None
    low = [tensor.detach().bfloat16() for tensor in (x, weight, b)]
    trained = [tensor.detach().float().requires_grad_(True) for tensor in (down, up)]
    LoRALinear.apply(*low, *trained, SCALING).float().square().sum().backward()
    for tensor, true in zip(trained, (exact[3], exact[4]), strict=True):
        assert tensor.grad is not None and true.grad is not None and tensor.grad.dtype == torch.float32
        assert (tensor.grad - true.grad).norm() < 0.03 * true.grad.norm()


class Two(nn.Module):
    """Two linear layers, the first with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(IN, OUT), nn.Linear(OUT, IN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).tanh())
        return found


def with_adapter(**more: Any) -> Any:
    torch.manual_seed(1)
    settings = {
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["first", "second"],
        "init_lora_weights": "lora_bias" in more,
    }
    return get_peft_model(Two(), LoraConfig(**{**settings, **more}))


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    loss = model(torch.randn(4, IN)).square().sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_fused_model_learns_what_pefts_own_does():
    eager, fused = with_adapter(), with_adapter()
    assert fuse(fused) == 2
    (loss, gradients), (other_loss, others) = loss_and_gradients(eager), loss_and_gradients(fused)
    torch.testing.assert_close(other_loss, loss)
    assert gradients.keys() == others.keys() and len(gradients) == 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient)


@pytest.mark.parametrize(
    "more", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True, "init_lora_weights": True}], ids=str
)
def test_whatever_is_not_plain_lora_stays_as_peft_has_it(more):
    eager, fused = with_adapter(**more), with_adapter(**more)
    fuse(fused)
    torch.manual_seed(3)
    loss, gradients = loss_and_gradients(eager)
    other_loss, others = loss_and_gradients(fused)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())


def test_switched_off_merged_and_switched_over_adapters_are_heeded():
    model = with_adapter()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    fuse(model)
    x = torch.randn(4, IN)
    with torch.no_grad():
        one = model(x)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), model.get_base_model().second.base_layer(
                model.get_base_model().first.base_layer(x).tanh()
            ))  # fmt: skip
        model.set_adapter("other")
        assert not torch.allclose(model(x), one)
        model.set_adapter("default")
        model.merge_adapter()
        torch.testing.assert_close(model(x), one)
