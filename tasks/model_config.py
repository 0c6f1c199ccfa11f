"""What a model's config.json says, also of one that is still to be converted; no torch, no weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.tiny import TINY, tiny_config

ARCHITECTURES = ("llama", "qwen2")
"""Of GGUF files, as their headers call them."""


def config_at(path: Path) -> dict[str, Any]:
    """Of a folder in transformers' form, of a GGUF file, or of `builtin:NAME`.

    Raises OSError or ValueError if nothing is there, or nothing that makes sense.
    """
    name = path.name.removeprefix("builtin:")
    if name != path.name and name in TINY:
        return tiny_config(name)
    if path.suffix == ".gguf" and path.is_file():
        found = _gguf_config(path, path.stat().st_mtime_ns)
        if isinstance(found, str):
            raise ValueError(found)
        return found
    config: Any = json.loads((path / "config.json").read_text())
    if not isinstance(config, dict):
        raise ValueError(f"{path / 'config.json'}: wanted an object, got {type(config).__name__}")
    return config


@lru_cache(maxsize=8)
def _gguf_config(path: Path, changed: int) -> dict[str, Any] | str:
    """What decides the shape, from the header, with the `name` and `licence` that it says; or what is wrong with it,
    which takes as long to find out.

    `changed` makes another file under the same name another one.
    """
    try:
        return _from_header(path)
    except Exception as error:  # the reader checks little: numpy says what it likes of a header that is cut off
        return f"{path}: its header can't be read ({type(error).__name__}: {error})"


def _from_header(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    architecture = _said(reader, "general.architecture")
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    about = {"model_type": architecture}
    about |= {name: _said(reader, f"general.{field}", "") for name, field in (("name", "name"), ("licence", "license"))}
    if architecture not in ARCHITECTURES:
        return about
    hidden, vocabulary = shapes["token_embd.weight"]
    heads = _said(reader, f"{architecture}.attention.head_count")
    return about | {
        "hidden_size": hidden, "vocab_size": vocabulary,
        "num_hidden_layers": _said(reader, f"{architecture}.block_count"),
        "intermediate_size": _said(reader, f"{architecture}.feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": _said(reader, f"{architecture}.attention.head_count_kv", heads),
        "max_position_embeddings": _said(reader, f"{architecture}.context_length"),
        "head_dim": shapes["blk.0.attn_q.weight"][1] // heads, "tie_word_embeddings": "output.weight" not in shapes,
    }  # fmt: skip


def _said(reader: Any, name: str, missing: Any = None) -> Any:
    """A field of the header; raises KeyError for one that is not there."""
    field = reader.get_field(name)
    if field is None and missing is None:
        raise KeyError(name)
    return missing if field is None else field.contents()
