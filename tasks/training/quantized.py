"""Linear layers in 4 bits, by bitsandbytes: made from a checkpoint, loaded to train adapters on, and read back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint, Quantized
from tasks.training.weight_files import WeightFiles, skeleton, transposed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64
"""Weights that share a scale."""
HEADS = ["lm_head", "score", "embed_out"]
"""What stays as it is: errors of the last layer go straight into every probability."""
M_MMAP_THRESHOLD = -3
"""Of mallopt(3): what is larger has pages of its own."""
STATE = ".quant_state."
"""Part of the name of a tensor that tells how the one before it was quantised."""


def quantise(checkpoint: Checkpoint, device: str, *, quant_type: str, double_quant: bool, compute_dtype: str) -> Any:
    """`checkpoint` on `device` with its linear layers in 4 bits; raises ModelError where bitsandbytes can't do it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    require_kernel(device, quant_type)
    _keep_no_large_blocks()
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype), llm_int8_skip_modules=HEADS,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype="auto", device_map={"": device}, quantization_config=config
    )


def _keep_no_large_blocks() -> None:
    """Have glibc give each freed tensor back to the system. It would keep the room of float32 layers that have gone,
    between their 4-bit copies that stay: none to half of the model, by chance."""
    with suppress(OSError, AttributeError):  # other C libraries have their own ways
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)


def require_kernel(device: str, quant_type: str = "nf4") -> None:
    """Raise ModelError unless bitsandbytes can multiply by 4-bit weights on `device`, found out by doing it."""
    import torch

    try:
        from bitsandbytes import functional
        from bitsandbytes.autograd._functions import matmul_4bit

        weights, state = functional.quantize_4bit(
            torch.eye(BLOCK, device=device), blocksize=BLOCK, quant_type=quant_type, compress_statistics=True
        )
        matmul_4bit(torch.ones(1, BLOCK, device=device), weights, quant_state=state)
    except torch.OutOfMemoryError:  # says nothing of kernels, and is told of in words of its own
        raise
    except (
        ImportError,
        RuntimeError,
    ) as error:  # its library may not load, or lack the kernel: it has no class for that
        where = torch.cuda.get_device_name() if device == "cuda" else "this CPU"
        raise ModelError(
            f"bitsandbytes has no 4-bit kernel for {where} ({str(error).splitlines()[0][:200]}); train on "
            "the unquantised base, or install a bitsandbytes that was built for this device"
        ) from error


def load_quantized(checkpoint: Quantized, device: str, model_class: Any, **more: Any) -> Any:
    """The model with its frozen 4-bit layers, ready to have adapters trained on it.

    What is not in 4 bits is float32, as the states between the layers then are: norms and residuals in half precision
    would round away what adapters learn.
    """
    import torch

    require_kernel(device)
    model = model_class.from_pretrained(checkpoint.path, dtype=torch.float32, device_map={"": device}, **more)
    for parameter in model.parameters():  # transformers leaves these as the files have them
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for _, layer in quantized_layers(model):
        # On some CPUs an evaluation repacks the weights into a form that has no backward pass: later training then gets
        # no gradients, with a warning at most.
        layer.support_avx512bf16_for_cpu = False
        if layer.bias is not None:  # the first forward pass would round it anyway
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)
    return model.requires_grad_(False)


def keep_float32(model: Any) -> None:
    """Hide from TRL that the base is in 4 bits: it would round the adapters to bfloat16, where small updates vanish."""
    if getattr(model, "is_loaded_in_4bit", False):
        model.is_loaded_in_4bit = False  # of the peft model around it; the base itself keeps its own


def quantized_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and modules of the layers in 4 bits."""
    from bitsandbytes.nn.modules import Linear4bit

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit))


def elements(parameter: Any) -> int:
    """How many weights a parameter stands for: one in 4 bits holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


class Dequantised(Mapping[str, "Tensor"]):
    """A quantised checkpoint's weights, the 4-bit ones multiplied out, each as the unquantised checkpoint has it."""

    def __init__(self, checkpoint: Quantized) -> None:
        self.files, self.turned = WeightFiles(checkpoint.path), transposed(skeleton(checkpoint.original))
        self.quantised = {name.partition(STATE)[0] for name in self.files if STATE in name}
        """Names of the weights in 4 bits."""

    def __getitem__(self, name: str) -> Tensor:
        import torch
        from bitsandbytes.functional import QuantState, dequantize_4bit

        if name not in self.quantised:
            return self.files[name]
        parts = {part: self.files[part] for part in self.files if part.startswith(f"{name}.")}
        weight: Tensor = dequantize_4bit(self.files[name], QuantState.from_dict(parts, device=torch.device("cpu")))
        return weight.T.contiguous() if name in self.turned else weight

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.files if name.rpartition(".weight.")[0] + ".weight" not in self.quantised)

    def __len__(self) -> int:
        return sum(1 for _ in self)
