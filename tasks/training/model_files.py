"""Writing complete models: weights in safetensors, configuration, tokenizer and chat template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)

SHARD = "2GB"
"""Size of a file of weights: a merge holds one at a time."""


def save_checkpoint(model: Any, tokenizer: Any, out: Path, dtype: str) -> None:
    """Write a complete model: weights, configuration, tokenizer and chat template."""
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
    save_weights(model, out, dtype)
    tokenizer.save_pretrained(out)


def save_weights(model: Any, out: Path, dtype: str) -> None:
    """Write weights and configuration in `dtype`."""
    import torch

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    write_model(model, out)


def write_model(model: Any, out: Path) -> None:
    """Write weights and configuration as they are, with no path of this machine."""
    model.config._name_or_path = ""
    model.save_pretrained(out, max_shard_size=SHARD)
    (out / "README.md").unlink(missing_ok=True)


def copy_companions(source: Path, out: Path) -> None:
    """What goes with a checkpoint's weights, byte for byte: tokenizer, chat template, and where it is from."""
    for pattern in (*TOKENIZER_FILES, "base.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)
