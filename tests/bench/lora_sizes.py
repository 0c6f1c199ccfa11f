"""`make lora-sizes`: how many parameters LoRA trains on well-known models, in closed form, target modules stated.

The 0.59 M often quoted for GPT-2 124M at rank 8 counts four projections of 768 x 768; its attention is one fused
projection of 768 x 2304 and one of 768 x 768, which gives 442,368.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.table import Table
from transformers import GPT2Config, GPTJConfig, LlamaConfig

from flows.tables import render
from tasks.shape import ModelShape

RANKS = (8, 16, 64)
ATTENTION = ["c_attn", "attn.c_proj"]
MODELS: dict[str, tuple[Any, list[str]]] = {
    "GPT-2 124M": (GPT2Config(), ATTENTION),
    "GPT-2 774M": (GPT2Config(n_embd=1280, n_layer=36, n_head=20), ATTENTION),
    "GPT-2 1.5B": (GPT2Config(n_embd=1600, n_layer=48, n_head=25), ATTENTION),
    "GPT-J 6B": (GPTJConfig(), ["q_proj", "k_proj", "v_proj", "out_proj"]),
    "SmolLM2 135M": (
        LlamaConfig(
            vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
            intermediate_size=1536, tie_word_embeddings=True,
        ),
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
    "Llama 3 8B": (
        LlamaConfig(
            vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=14336,
        ),
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
}  # fmt: skip


def sizes(config: Any, targets: str | list[str]) -> tuple[int, list[int]]:
    """All parameters, and those that LoRA trains at each rank."""
    shape = ModelShape.from_config(config.to_dict())
    assert shape is not None
    return shape.parameters, [shape.lora_parameters(rank, targets, None) for rank in RANKS]


def main() -> None:
    """Print the table: the attention's projections, then every linear module."""
    table = Table(box=None, pad_edge=False, header_style="none")
    for heading in ("model", "parameters", "target modules", *(f"r = {rank}" for rank in RANKS)):
        table.add_column(heading, justify="left" if heading in ("model", "target modules") else "right")
    for name, (config, attention) in MODELS.items():
        for targets in (attention, "all-linear"):
            total, trained = sizes(config, targets)
            shown = targets if isinstance(targets, str) else ", ".join(targets)
            table.add_row(name, f"{total:,}", shown, *(f"{count:,}" for count in trained))
    sys.stdout.write(render(table) + "\n")


if __name__ == "__main__":
    main()
